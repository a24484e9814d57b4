use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{from_value, json};

use super::*;
use crate::testing::file;

const CONFIG: &str = "
issuers:
  letsencrypt:
    directory: https://ca.example/directory
    contact: ops@example.com
    allow:
      - {namespaces: [shop], names: ['*.shop.example', '10.0.0.0/8']}
      - {namespaces: [other], names: [other.example]}
";

fn problems(annotations: &[(&str, &str)]) -> Vec<String> {
    let annotations: BTreeMap<String, String> = { annotations.iter() }
        .map(|(key, value)| (format!("cert-renew.io/{key}"), (*value).to_owned()))
        .collect();
    let secret: ThinSecret = from_value(json!({
        "metadata": {"name": "tls", "namespace": "shop", "uid": "u", "annotations": annotations},
        "data": {"tls.crt": STANDARD.encode(file("good.pem"))},
        "type": "kubernetes.io/tls",
    }))
    .unwrap();
    let key = SecretRef {
        namespace: "shop".into(),
        name: "tls".into(),
    };
    let config = Config::parse(CONFIG).unwrap();
    let assessment = of_thin(UnixTime(0), &key, &secret, &config).unwrap();
    assessment
        .problems
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn a_problem_says_what_was_meant_and_what_there_is() {
    let le = ("issuer", "letsencrypt");
    for (annotations, expected) in [
        (
            &[("issuer", "LetsEncrypt"), ("names", "a.shop.example")][..],
            &[
                "expected an issuer of the config (letsencrypt) or external; did you mean letsencrypt?",
            ][..],
        ),
        (
            &[("issuer", "letsencyrpt"), ("names", "a.shop.example")],
            &[
                "expected an issuer of the config (letsencrypt) or external; did you mean letsencrypt?",
            ],
        ),
        (
            &[("issuer", "zerossl"), ("names", "a.shop.example")],
            &["expected an issuer of the config (letsencrypt) or external"],
        ),
        (
            &[le, ("names", "evil.example")],
            &[
                "grants to namespace shop: *.shop.example, 10.0.0.0/8; who runs cert-renew can grant more there",
            ],
        ),
        (
            &[
                ("issuer", "external"),
                ("names", "a.shop.example; b.shop.example"),
            ],
            &["separate them by ','"],
        ),
        (
            &[("issuer", "external"), ("nmaes", "a.shop.example")],
            &["did you mean cert-renew.io/names?"],
        ),
        (
            &[("issuer", "external"), ("outputs", "keystore.p12=pkcs12")],
            &["expected cert-renew.io/pkcs12-password-key beside it"],
        ),
        (
            &[("issuer", "external"), ("renew-before", "9000d")],
            &["expected at most half of the certificate's lifetime"],
        ),
        (
            &[("issuer", "external"), ("renew-before", "51%")],
            &["expected at most half of the certificate's lifetime"],
        ),
        (&[("issuer", "external"), ("renew-before", "50%")], &[]),
    ] {
        let found = problems(annotations);
        assert_eq!(found.len(), expected.len(), "{annotations:?}: {found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{annotations:?}: {found}");
        }
    }
}
