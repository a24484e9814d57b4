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
    let assessment = assessed("good.pem", annotations);
    assessment
        .problems
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn assessed(certificate: &str, annotations: &[(&str, &str)]) -> Assessment {
    let annotations: BTreeMap<String, String> = { annotations.iter() }
        .map(|(key, value)| (format!("cert-renew.io/{key}"), (*value).to_owned()))
        .collect();
    let secret: ThinSecret = from_value(json!({
        "metadata": {"name": "tls", "namespace": "shop", "uid": "u", "annotations": annotations},
        "data": {"tls.crt": STANDARD.encode(file(certificate))},
        "type": "kubernetes.io/tls",
    }))
    .unwrap();
    let key = SecretRef {
        namespace: "shop".into(),
        name: "tls".into(),
    };
    let config = Config::parse(CONFIG).unwrap();
    of_thin(UnixTime(0), &key, &secret, &config).unwrap()
}

/// That takes many times as long as the rest, and a cluster may have a hundred thousand of them.
#[test]
fn nobody_checks_the_signature_of_a_self_signed_certificate_that_another_program_renews() {
    for (issuer, paused, checked) in [
        ("external", "false", false),
        ("letsencrypt", "false", true),
        ("letsencrypt", "true", false),
        ("letsencrypt", "perhaps", false),
    ] {
        let annotations = [("issuer", issuer), ("paused", paused)];
        let assessment = assessed("self-signed.pem", &annotations);
        let _ = assessment.observed("u", "1");
        let leaf = assessment.leaf.unwrap();
        assert_eq!(leaf.self_signed.is_checked(), checked, "{issuer} {paused}");
        assert!(leaf.self_signed.get(), "{issuer} {paused}");
    }
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
            &[("issuer", "external"), ("names", "a.shop.example;")],
            &["\"a.shop.example;\": expected"],
        ),
        (
            &[("issuer", "external"), ("names", "a.shop.example;")],
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

/// A certificate of ninety days that was signed by one which ends on that day of 2026.
fn signed_until(month: u8, day: u8) -> String {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    let params = |name: &str, from: (i32, u8, u8), to: (i32, u8, u8)| {
        let mut params = CertificateParams::new(vec!["a.shop.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(to.0, to.1, to.2);
        params
    };
    let (root, middle, own) = [(); 3].map(|()| KeyPair::generate().unwrap()).into();
    let by_root = Issuer::new(params("root", (2020, 1, 1), (2050, 1, 1)), &root);
    let mut above = params("middle", (2025, 1, 1), (2026, month, day));
    above.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let signing = above.signed_by(&middle, &by_root).unwrap().pem();
    let by_middle = Issuer::new(above, &middle);
    let leaf = params("leaf", (2026, 1, 1), (2026, 4, 1));
    leaf.signed_by(&own, &by_middle).unwrap().pem() + &signing
}

#[test]
fn a_renewal_before_the_end_of_the_issuer_is_promised_only_where_there_is_one() {
    let config = Config::parse(CONFIG).unwrap();
    let key = SecretRef::new("shop", "tls");
    let (early, late) = (signed_until(1, 6), signed_until(3, 1));
    let (le, pause) = (
        ("cert-renew.io/issuer", "letsencrypt"),
        ("cert-renew.io/paused", "true"),
    );
    let other = ("cert-renew.io/names", "a.other.example");
    for (pem, at, annotations, is_renewed) in [
        (&late, "2026-01-02", &[le][..], true),
        // Not before it is a tenth of its lifetime old.
        (&early, "2026-01-02", &[le], false),
        (&late, "2026-03-02", &[le], false),
        (&late, "2026-01-02", &[le, pause], false),
        (
            &late,
            "2026-01-02",
            &[("cert-renew.io/issuer", "nosuch")],
            false,
        ),
        (&late, "2026-01-02", &[le, other], false),
    ] {
        let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
        let secret: ThinSecret = from_value(json!({
            "metadata": {"name": "tls", "namespace": "shop", "uid": "u", "annotations": annotations},
            "data": {"tls.crt": STANDARD.encode(pem)},
            "type": "kubernetes.io/tls",
        }))
        .unwrap();
        let now = format!("{at}T00:00:00Z").parse().unwrap();
        let assessment = of_thin(now, &key, &secret, &config).unwrap();
        let texts = assessment.problems.iter().map(ToString::to_string);
        let of_chain: Vec<String> = texts.filter(|it| it.contains("sooner than")).collect();
        let [text] = &*of_chain else {
            panic!("{of_chain:?}");
        };
        let said = text.contains("it is renewed before that");
        assert_eq!(said, is_renewed, "{at} {annotations:?}: {text}");
    }
}
