use std::convert::Infallible;
use std::sync::Arc;

use cert_renew_core::config::Propagation;
use http::{Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::json;
use tower::service_fn;
use zeroize::ZeroizeOnDrop;

use super::*;

/// An API server that answers requests with these queries so.
fn client(answer: impl Fn(&str) -> serde_json::Value + Send + 'static) -> Client {
    let server = service_fn(move |request: Request<Body>| {
        let body = answer(request.uri().query().unwrap_or_default()).to_string();
        async move { Ok::<_, Infallible>(Response::new(Body::from(body.into_bytes()))) }
    });
    Client::new(server, "cert-renew")
}

fn with(name: &str, data: &[(&str, &str)]) -> serde_json::Value {
    let data = data.iter().map(|(key, value)| {
        let value = ByteString(value.as_bytes().to_vec());
        ((*key).to_owned(), json!(value))
    });
    let data: serde_json::Map<_, _> = data.collect();
    json!({"metadata": {"name": name, "uid": "u"}, "data": data})
}

#[tokio::test]
async fn the_record_of_another_secret_is_taken_for_nobody_elses() {
    let other = with("x", &[(ORDER, r#"{"namespace": "shop", "name": "other"}"#)]);
    let client = client(move |_| other.clone());
    let found = get(&client, "cert-renew", &SecretRef::new("shop", "tls")).await;
    let Err(Error::Refused { message, .. }) = found else {
        panic!("it is taken");
    };
    assert_eq!(message, "it is the record of another Secret");
}

/// Anybody who asks the challenge port for an unknown token has them listed.
#[tokio::test]
async fn records_are_listed_page_by_page_for_a_token_and_their_keys_are_not_kept() {
    let queries: Arc<Mutex<Vec<String>>> = Arc::default();
    let asked = Arc::clone(&queries);
    let client = client(move |query| {
        asked.lock().push(query.to_owned());
        let (number, next) = match query.contains("continue=") {
            false => (1, "more"),
            true => (2, ""),
        };
        let proofs = format!(r#"{{"token-{number}": "proof"}}"#);
        let record = with(
            &format!("record-{number}"),
            &[(CHALLENGES, &proofs), (KEY, "secret")],
        );
        json!({"metadata": {"resourceVersion": "7", "continue": next}, "items": [record]})
    });
    let mut found = Vec::new();
    let each = |record, challenges: BTreeMap<String, String>| {
        found.push((record, challenges.into_keys().collect::<String>()));
    };
    challenges_now(&client, "cert-renew", each).await.unwrap();
    let expected = [("record-1", "token-1"), ("record-2", "token-2")];
    let expected = expected.map(|(record, token)| (record.to_owned(), token.to_owned()));
    assert_eq!(found, expected);
    let queries = queries.lock();
    assert_eq!(queries.len(), 2, "{queries:?}");
    let limit = format!("limit={PAGE}");
    assert!(queries.iter().all(|it| it.contains(&limit)), "{queries:?}");
    let thin: ThinRecord = serde_json::from_value(with("a", &[(KEY, "secret")])).unwrap();
    assert_eq!(size_of_val(&thin.data), size_of::<Option<ByteString>>());
    assert!(thin.data.challenges.is_none());
}

#[test]
fn a_record_is_named_by_128_bits_and_by_half_of_them_where_version_0_1_made_it() {
    let key = SecretRef {
        namespace: "shop".into(),
        name: "tls".into(),
    };
    let (now, former) = (record_name(&key), former_record_name(&key));
    assert_eq!(now.len(), "cert-renew-order-".len() + 32);
    assert_eq!(now[..former.len()], former);
    assert_eq!(former.len(), "cert-renew-order-".len() + 16);
}

#[test]
fn a_record_of_another_secret_is_told_by_what_it_says() {
    let key = |namespace: &str, name: &str| SecretRef {
        namespace: namespace.into(),
        name: name.into(),
    };
    let record = |order: &str| Secret {
        data: Some([(ORDER.to_owned(), ByteString(order.into()))].into()),
        ..Secret::default()
    };
    let ours = record(r#"{"namespace": "shop", "name": "tls"}"#);
    assert!(!is_of_another(&ours, &key("shop", "tls")));
    assert!(is_of_another(&ours, &key("shop", "other")));
    assert!(is_of_another(&ours, &key("other", "tls")));
    for unreadable in ["", "{", r#"{"namespace": "other"}"#] {
        assert!(!is_of_another(&record(unreadable), &key("shop", "tls")));
    }
}

#[test]
fn what_cannot_be_read_of_a_record_is_counted_and_stops_no_order() {
    let order = |txt: serde_json::Value, routes: serde_json::Value| {
        let order = json!({
            "namespace": "shop", "name": "tls", "uid": "u", "issuer": "le", "url": "https://ca.example/order/7",
            "names": ["shop.example"], "reason": "lifetime", "created": 7, "txt": txt, "routes": routes,
        });
        let written = order.to_string();
        let read: Order = serde_json::from_str(&written).unwrap();
        (read.txt.len(), left_out(written.as_bytes(), &read))
    };
    let txt = Txt {
        of: "shop.example".into(),
        at: "_acme-challenge.shop.example".into(),
        zone: "shop.example".into(),
        value: "v".into(),
        solver: Dns01 {
            provider: "cloudflare".into(),
            credentials: None,
            settings: BTreeMap::new(),
            propagation: Propagation::default(),
        },
    };
    let later = json!({"of": "shop.example", "kept": "elsewhere"});
    assert_eq!(order(json!([]), json!([])), (0, 0));
    assert_eq!(order(json!(null), json!(null)), (0, 0));
    assert_eq!(order(json!([later]), json!([later, 7])), (0, 3));
    assert_eq!(order(json!([txt, later]), json!([])), (1, 1));
}

#[test]
fn key_authorizations_that_cannot_be_read_are_told_apart_from_none() {
    let read = |data: &[(&str, &str)]| {
        let thin: ThinRecord = serde_json::from_value(with("a", data)).unwrap();
        thin.read().1.map(|challenges| challenges.len())
    };
    assert_eq!(read(&[]), Some(0));
    assert_eq!(read(&[(CHALLENGES, r#"{"token": "proof"}"#)]), Some(1));
    assert_eq!(read(&[(CHALLENGES, "[")]), None);
    assert_eq!(read(&[(CHALLENGES, r#"{"token": 7}"#)]), None);
}

/// Compiles only for what is wiped on drop.
fn is_wiped<T: ZeroizeOnDrop>(_: &T) {}

#[test]
fn a_record_stays_in_what_is_wiped_whether_or_not_it_can_be_read() {
    let order = json!({
        "namespace": "shop", "name": "tls", "uid": "u", "issuer": "le", "url": "https://ca.example/order/7",
        "names": ["shop.example"], "reason": "lifetime", "created": 7,
    });
    let order = order.to_string();
    let name = record_name(&SecretRef::new("shop", "tls"));
    for (order, is_readable) in [(&*order, true), ("{", false)] {
        let record = with(
            &name,
            &[(ORDER, order), (KEY, "secret"), (CHALLENGES, "{}")],
        );
        let mut keyed = Keyed::wiped(serde_json::from_value(record).unwrap());
        let key = read(&mut keyed).map(|record| record.key);
        is_wiped(&key);
        assert_eq!(key.is_some(), is_readable, "{order}");
        let left = keyed.secret.data.iter().flat_map(BTreeMap::keys);
        assert_eq!(left.collect::<Vec<_>>(), [CHALLENGES, ORDER, KEY]);
    }
}
