//! The table: which answer, at which point of an order, and what is to come of it.

use serde_json::{Value, json};

use super::{AGAIN, OF_ORDERS, POINTS, Row, Strange};

fn row(point: &'static str, strange: Strange) -> Row {
    Row {
        point,
        strange,
        is_failed_validation: false,
    }
}

/// Each member missing, null, of another type and unknown; each state at each point; each error at each request.
pub(super) fn rows() -> Vec<Row> {
    let order = [
        "/status",
        "/expires",
        "/identifiers",
        "/identifiers/0/type",
        "/identifiers/0/value",
        "/authorizations",
        "/finalize",
        "/certificate",
        "/profile",
        "/error",
        "/replaces",
        "/notBefore",
        "/notAfter",
    ];
    let authorization = [
        "/status",
        "/expires",
        "/identifier",
        "/identifier/type",
        "/identifier/value",
        "/wildcard",
        "/challenges",
        "/challenges/0/type",
        "/challenges/0/url",
        "/challenges/0/status",
        "/challenges/0/token",
        "/challenges/0/error",
        "/challenges/0/validated",
        "/challenges/1/type",
    ];
    let members: [(&str, &[&'static str]); 8] = [
        (
            "directory",
            &[
                "/newNonce",
                "/newAccount",
                "/newOrder",
                "/revokeCert",
                "/keyChange",
                "/renewalInfo",
                "/meta",
                "/meta/termsOfService",
                "/meta/website",
                "/meta/caaIdentities",
                "/meta/externalAccountRequired",
                "/meta/profiles",
                "/meta/profiles/default",
            ],
        ),
        (
            "account",
            &[
                "/status",
                "/orders",
                "/contact",
                "/termsOfServiceAgreed",
                "/externalAccountBinding",
            ],
        ),
        (
            "ari",
            &[
                "/suggestedWindow",
                "/suggestedWindow/start",
                "/suggestedWindow/end",
                "/explanationURL",
            ],
        ),
        ("revoke", &["/status"]),
        ("key-change", &["/status"]),
        ("authz", &authorization),
        (AGAIN, &authorization),
        (
            "challenge",
            &["/type", "/url", "/status", "/token", "/error"],
        ),
    ];
    let of_orders = OF_ORDERS.map(|point| (point, order.as_slice()));
    let others = [
        Value::Null,
        json!(7),
        json!(true),
        json!("something else"),
        json!([]),
        json!({}),
        json!([null, 7]),
    ];
    let mut rows = Vec::new();
    for (point, members) in members.into_iter().chain(of_orders) {
        for member in members {
            rows.push(row(point, Strange::Without(member)));
            let with = |value: &Value| row(point, Strange::With(member, value.clone()));
            rows.extend(others.iter().map(with));
        }
    }
    for point in OF_ORDERS {
        // No authorization has failed, whatever the order is.
        let with = |state: &str| row(point, Strange::With("/status", json!(state)));
        rows.extend(["pending", "ready", "processing", "valid", "invalid"].map(with));
    }
    for state in [
        "pending",
        "valid",
        "invalid",
        "deactivated",
        "expired",
        "revoked",
    ] {
        for point in ["authz", AGAIN] {
            rows.push(Row {
                // The others end by their time, or are taken back.
                is_failed_validation: state == "invalid",
                ..row(point, Strange::With("/status", json!(state)))
            });
        }
    }
    for state in ["pending", "processing", "valid", "invalid"] {
        rows.push(row(
            "authz",
            Strange::With("/challenges/0/status", json!(state)),
        ));
        rows.push(row(
            AGAIN,
            Strange::With("/challenges/0/status", json!(state)),
        ));
        rows.push(row("challenge", Strange::With("/status", json!(state))));
    }
    rows.extend(variants());
    let kinds = [
        "accountDoesNotExist",
        "alreadyReplaced",
        "alreadyRevoked",
        "badCSR",
        "badNonce",
        "badPublicKey",
        "badRevocationReason",
        "badSignatureAlgorithm",
        "caa",
        "compound",
        "conflict",
        "connection",
        "dns",
        "externalAccountRequired",
        "incorrectResponse",
        "invalidContact",
        "invalidProfile",
        "malformed",
        "onionCAARequired",
        "orderNotReady",
        "rejectedIdentifier",
        "serverInternal",
        "tls",
        "unauthorized",
        "unsupportedContact",
        "unsupportedIdentifier",
        "userActionRequired",
        "aNewOne",
    ];
    for point in POINTS {
        for status in [400, 401, 403, 404, 409, 500, 503] {
            let full = |kind: &str| format!("urn:ietf:params:acme:error:{kind}");
            for kind in kinds {
                if status == 400 || status == 403 {
                    rows.push(row(point, Strange::Problem(status, full(kind))));
                }
            }
            for kind in ["about:blank", "Verification failed: account key", ""] {
                rows.push(row(point, Strange::Problem(status, kind.to_owned())));
            }
        }
        for status in [200, 201, 202] {
            rows.push(row(point, Strange::Status(status)));
        }
        let nonces = [None, Some(""), Some("not base64url!"), Some("nonce")];
        let waits = [
            "0",
            "-1",
            "1.5",
            "soon",
            "99999999999999999999",
            "Thu, 01 Jan 1970 00:00:00 GMT",
        ];
        let nonces = nonces.map(|value| Strange::Header("replay-nonce", value));
        let waits = waits.map(|value| Strange::Header("retry-after", Some(value)));
        rows.extend(nonces.into_iter().chain(waits).map(|it| row(point, it)));
        if point != "certificate" {
            for body in ["", "null", "[]", "\"pending\"", "<html>", "{", "{}"] {
                rows.push(row(point, Strange::Body(body)));
            }
        }
    }
    rows
}

/// What the RFCs let stand where Pebble has something else: addresses (8738), hidden services (9799), profiles, errors of
/// an order and of a challenge, dates, places without a host.
fn variants() -> Vec<Row> {
    let problem = json!({"type": "urn:ietf:params:acme:error:dns", "detail": "said by the script",
        "subproblems": [{"type": "urn:ietf:params:acme:error:caa", "identifier": {"type": "ip", "value": "10.0.0.1"}}]});
    let identifiers = [
        json!({"type": "ip", "value": "10.0.0.1"}),
        json!({"type": "ip", "value": "2001:db8::1"}),
        json!({"type": "dns", "value": "A.EXAMPLE."}),
        json!({"type": "dns", "value": "b\u{fc}cher.example"}),
        json!({"type": "dns", "value": format!("{}.onion", "a".repeat(56))}),
        json!({"type": "permanent-identifier", "value": "x"}),
    ];
    let mut rows = Vec::new();
    let mut with =
        |point, pointer, value: Value| rows.push(row(point, Strange::With(pointer, value)));
    for identifier in identifiers {
        with("authz", "/identifier", identifier.clone());
        for point in OF_ORDERS {
            with(point, "/identifiers", json!([identifier]));
        }
    }
    for kind in [
        "dns-01",
        "tls-alpn-01",
        "dns-account-01",
        "dns-persist-01",
        "onion-csr-01",
        "device-attest-01",
    ] {
        with("authz", "/challenges/1/type", json!(kind));
        with("challenge", "/type", json!(kind));
    }
    with("authz", "/challenges", json!([]));
    with("authz", "/challenges/0/error", problem.clone());
    with("authz", "/expires", json!("1970-01-01T00:00:00Z"));
    with("challenge", "/error", problem.clone());
    with("challenge", "/validated", json!("1970-01-01T00:00:00Z"));
    for point in OF_ORDERS {
        with(point, "/error", problem.clone());
        with(point, "/profile", json!("another"));
        with(point, "/replaces", json!("AAAA.BBBB"));
        with(point, "/authorizations", json!([]));
        for (pointer, date) in [
            ("/expires", "1970-01-01T00:00:00Z"),
            ("/expires", "2099-01-01T00:00:00.123456+05:30"),
            ("/notBefore", "2026-01-01T00:00:00Z"),
            ("/notAfter", "1970-01-01T00:00:00Z"),
        ] {
            with(point, pointer, json!(date));
        }
    }
    for pointer in ["/newNonce", "/newAccount", "/newOrder"] {
        for url in ["ftp://ca.example/", "http://ca.example/"] {
            with("directory", pointer, json!(url));
        }
    }
    for (start, end) in [
        ("2098-01-02T00:00:00Z", "2098-01-01T00:00:00Z"),
        ("1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z"),
        ("2098-01-01T00:00:00.5+01:00", "9999-12-31T23:59:60Z"),
    ] {
        with(
            "ari",
            "/suggestedWindow",
            json!({"start": start, "end": end}),
        );
    }
    for point in ["account", "new-order"] {
        for value in [
            None,
            Some(""),
            Some("/order"),
            Some("order"),
            Some("ftp://x/"),
        ] {
            rows.push(row(point, Strange::Header("location", value)));
        }
    }
    // The CA has looked, and would look again.
    rows.push(Row {
        is_failed_validation: true,
        ..row(AGAIN, Strange::With("/challenges/0/error", problem))
    });
    for status in ["deactivated", "revoked"] {
        rows.push(row("account", Strange::With("/status", json!(status))));
    }
    rows
}
