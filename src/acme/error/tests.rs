use super::*;

const NOW: UnixTime = UnixTime(1_800_000_000);

/// Action, status and type; the CA's text; reason and class, the latter in Debug format.
const ANSWERS: &str = r#"
        NewOrder 429 rateLimited
        too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s, retry after 2027-01-15 09:13:16 UTC: see https://letsencrypt.org/docs/rate-limits/#new-certificates-per-exact-set-of-identifiers
        RateLimited: RateLimited { until: UnixTime(1800004396), scope: Names }

        NewOrder 429 rateLimited
        too many failed authorizations (5) for "example.com" in the last 1h0m0s, retry after 2027-01-15 08:00:15 UTC: see https://letsencrypt.org/docs/rate-limits/#authorization-failures-per-hostname-per-account
        RateLimited: RateLimited { until: UnixTime(1800000015), scope: Names }

        NewOrder 429 rateLimited
        too many new orders (300) from this account in the last 3h0m0s
        RateLimited: RateLimited { until: UnixTime(1800003600), scope: Issuer }

        NewOrder 429 rateLimited
        Your account is temporarily prevented from requesting certificates for example.com and possibly others. Please visit: https://portal.letsencrypt.org/sfe/v1/unpause?jwt=a.b.c
        Paused: Paused

        NewOrder 400 rejectedIdentifier
        Cannot issue for "example.internal": Domain name does not end with a valid public suffix (TLD)
        RejectedIdentifier: FixIt

        NewOrder 403 unauthorized
        requester account did not request the certificate being replaced by this order
        Unauthorized: FixIt

        Order 404 malformed
        No order for ID 17
        OrderGone: Transient

        Order 403 unauthorized
        Account that authenticated the request does not own the specified order
        OrderGone: Transient

        Finalize 403 caa
        CAA record for example.com prevents issuance
        Caa: FixIt

        Finalize 403 orderNotReady
        Order's status ("valid") was not "ready"
        OrderNotReady: Transient

        NewOrder 400 accountDoesNotExist
        Account https://localhost:14000/my-account/1 not found.
        AccountDoesNotExist: AccountGone

        NewOrder 400 invalidProfile
        Order includes unrecognized profile name "x"
        InvalidProfile: Permanent

        NewOrder 409 alreadyReplaced
        certificate with serial 1 already has a replacement order
        AlreadyReplaced: Transient

        NewAccount 403 externalAccountRequired
        ACME server policy requires newAccount requests must include a value for the 'externalAccountBinding' field
        ExternalAccountRequired: Permanent

        NewAccount 403 unauthorized
        An account with the provided public key exists but is deactivated
        Unauthorized: Permanent

        Order 400 badNonce
        Invalid anti-replay nonce
        BadNonce: Transient

        NewOrder 500 serverInternal
        Error creating new order
        ServerInternal: Transient

        NewOrder 429 tooFast
        slow down
        RateLimited: RateLimited { until: UnixTime(1800003600), scope: Issuer }

        NewOrder 400 somethingNew
        what is it
        Refused: FixIt

        NewOrder 500 somethingNew
        what is it
        Refused: Transient
    "#;

fn action(name: &str) -> Action {
    match name {
        "NewOrder" => Action::NewOrder,
        "NewAccount" => Action::NewAccount,
        "Finalize" => Action::Finalize,
        _ => Action::Order,
    }
}

#[test]
fn answers_of_boulder_and_pebble_are_classified() {
    for case in ANSWERS.split("\n\n") {
        let lines: Vec<&str> = case.trim().lines().map(str::trim).collect();
        let request: Vec<&str> = lines[0].split(' ').collect();
        let status = request[1].parse().unwrap();
        let kind = format!("urn:ietf:params:acme:error:{}", request[2]);
        let body = serde_json::json!({"type": kind, "detail": lines[1]}).to_string();
        let error = Error::answer(action(request[0]), "ca", status, body.as_bytes(), None, NOW);
        let found = format!("{}: {:?}", error.reason(), error.class());
        assert_eq!(found, lines[2], "{error}");
        assert!(error.detail().contains(lines[1]), "{error}");
    }
}

#[test]
fn answers_without_a_problem_are_classified_by_status() {
    let limited = |seconds| Class::RateLimited {
        until: NOW + Duration::from_secs(seconds),
        scope: Scope::Issuer,
    };
    let cases = [
        (503, Some(30), limited(31)),
        (503, None, Class::Transient),
        (502, Some(30), Class::Transient),
        (429, None, limited(3_600)),
        (429, Some(u64::MAX), limited(7 * 86_400)),
        (403, None, Class::Transient),
    ];
    for (status, wait, class) in cases {
        let wait = wait.map(Duration::from_secs);
        let page = b"<html>down for maintenance</html>";
        let error = Error::answer(Action::NewOrder, "ca", status, page, wait, NOW);
        assert_eq!(error.class(), class, "{status} {wait:?}");
    }
}

#[test]
fn the_end_of_a_limit_in_the_past_says_nothing() {
    let limit = |time| {
        let detail = format!("too many new orders, retry after {time} UTC: see the docs");
        let kind = "urn:ietf:params:acme:error:rateLimited";
        let body = serde_json::json!({"type": kind, "detail": detail}).to_string();
        let error = Error::answer(Action::NewOrder, "ca", 429, body.as_bytes(), None, NOW);
        error.retry_after().unwrap()
    };
    // NOW is 2027-01-15 08:00:00.
    assert_eq!(limit("2027-01-15 07:59:59"), NOW + UNNAMED_LIMIT);
    assert_eq!(limit("2027-01-15 08:00:00"), NOW + UNNAMED_LIMIT);
    assert_eq!(limit("2027-01-15 08:00:10"), NOW + Duration::from_secs(10));
}

#[test]
fn what_may_be_about_the_lifetime_is_told_from_what_is_not() {
    let cases = [
        (Action::NewOrder, 400, "malformed", true),
        (Action::NewOrder, 403, "unauthorized", true),
        (Action::NewOrder, 400, "somethingNew", true),
        (Action::Finalize, 500, "serverInternal", true),
        (Action::NewOrder, 400, "rejectedIdentifier", false),
        (Action::NewOrder, 429, "rateLimited", false),
        (Action::Finalize, 400, "badCSR", false),
        (Action::Order, 500, "serverInternal", false),
        (Action::NewAccount, 400, "malformed", false),
    ];
    for (action, status, kind, expected) in cases {
        let kind = format!("urn:ietf:params:acme:error:{kind}");
        let body = serde_json::json!({"type": kind, "detail": "no"}).to_string();
        let error = Error::answer(action, "ca", status, body.as_bytes(), None, NOW);
        assert_eq!(error.may_be_the_lifetime(), expected, "{error}");
    }
    let page = Error::answer(Action::NewOrder, "ca", 400, b"<html>", None, NOW);
    assert!(page.may_be_the_lifetime());
    let page = Error::answer(Action::NewOrder, "ca", 502, b"<html>", None, NOW);
    assert!(!page.may_be_the_lifetime());
}

#[test]
fn an_invalid_order_is_for_its_owner_to_fix() {
    let problem = |kind: &str| {
        let kind = kind.to_owned();
        let problem = Problem {
            kind,
            ..Problem::default()
        };
        Error::new(
            Action::Authorization,
            "ca",
            Kind::Invalid(Box::new(problem)),
        )
    };
    let cases = [
        ("unauthorized", "Unauthorized", Class::FixIt),
        ("serverInternal", "ServerInternal", Class::Transient),
        ("rateLimited", "RateLimited", Class::FixIt),
        ("", "OrderInvalid", Class::FixIt),
    ];
    for (kind, reason, class) in cases {
        let error = problem(kind);
        assert_eq!((error.reason(), error.class()), (reason, class));
    }
}
