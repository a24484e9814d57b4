//! Input that is hostile by its size or its shape rather than by broken bytes.

use rcgen::{BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair};

use super::*;

fn hostile(name: &str) -> Vec<u8> {
    fs::read(format!(
        "{}/testdata/hostile/{name}",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

/// Asserts that the work is done in time, even on a busy machine.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    assert!(begun.elapsed() < SLOW, "{what} took {:?}", begun.elapsed());
    result
}

#[test]
fn a_key_of_another_age_is_a_key_of_no_known_type() {
    let leaf = certificate::leaf(&hostile("ml-dsa-65.pem")).unwrap();
    assert_eq!(leaf.names, ["quantum.example".parse().unwrap()]);
    assert_eq!(leaf.key_type, None);
}

#[test]
fn a_chain_that_loops_ends() {
    let (leaf, loop_) = {
        let all = certificate::certificates(&hostile("loop.pem")).unwrap();
        let pem = |der: &Vec<u8>| pem::encode("CERTIFICATE", der).to_string();
        (pem(&all[0]), pem(&all[1]) + &pem(&all[2]))
    };
    // Left is signed by Right, Right by Left: each step is sound, and the chain is endless.
    let endless = leaf + &loop_.repeat(300);
    let chain = pair::Chain::read(endless.as_bytes()).unwrap();
    assert_eq!(timed("the order of a loop", || chain.check_order()), Ok(()));
}

/// One authority with two certificates, its own root and one signed by an older root, as "ISRG Root X1" was: a chain
/// through either of the two, and through both, is valid.
#[test]
fn a_cross_signed_chain_is_in_order_by_either_root() {
    let authority = |name: &str| {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    };
    let (old, new, lower) = (authority("Old"), authority("New"), authority("Lower"));
    let by_old = Issuer::from_params(&old.0, &old.1);
    let by_new = Issuer::from_params(&new.0, &new.1);
    let by_lower = Issuer::from_params(&lower.0, &lower.1);
    let crossed = new.0.signed_by(&new.1, &by_old).unwrap().pem();
    let own = new.0.self_signed(&new.1).unwrap().pem();
    let lower = lower.0.signed_by(&lower.1, &by_new).unwrap().pem();
    let leaf = CertificateParams::new(vec!["crossed.example".into()]).unwrap();
    let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &by_lower);
    let leaf = leaf.unwrap().pem();
    let old = old.0.self_signed(&old.1).unwrap().pem();
    for roots in [
        vec![&crossed],
        vec![&own],
        vec![&crossed, &old],
        vec![&own, &crossed, &old],
    ] {
        let issuers: String = roots.into_iter().cloned().collect();
        let chain = pair::Chain::read(format!("{leaf}{lower}{issuers}").as_bytes()).unwrap();
        assert_eq!(chain.check_order(), Ok(()));
    }
    // In the other order no certificate certifies the one before it.
    let chain = pair::Chain::read(format!("{leaf}{lower}{old}{crossed}").as_bytes()).unwrap();
    assert!(chain.check_order().is_err());
}

#[test]
fn thousands_of_names_and_huge_extensions_are_read_in_time() {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = (0..10_000).map(|i| format!("n{i}.example")).collect();
    let many = CertificateParams::new(names).unwrap();
    let many = many.self_signed(&key).unwrap().pem();
    let leaf = timed("10,000 names", || certificate::leaf(many.as_bytes())).unwrap();
    assert_eq!(leaf.names.len(), 1_000);
    let count = 10_000;
    assert_eq!(*leaf.remarks, [certificate::Remark::ManyNames { count }]);

    let mut huge = CertificateParams::new(vec!["huge.example".into()]).unwrap();
    let body = vec![0x30; 600 * 1024];
    let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], body);
    extension.set_criticality(true);
    huge.custom_extensions.push(extension);
    let huge = huge.self_signed(&key).unwrap().pem();
    let leaf = timed("a huge extension", || certificate::leaf(huge.as_bytes())).unwrap();
    assert_eq!(leaf.names.len(), 1);

    // As much as a Secret can hold, and more.
    let full = many.repeat(1 + certificate::MAX_BYTES / many.len());
    let why = timed("a full Secret", || certificate::leaf(full.as_bytes()));
    assert_eq!(why, Err(certificate::Unreadable::TooLarge(full.len())));
    let begins = b"-----BEGIN CERTIFICATE-----".repeat(certificate::MAX_BYTES / 28);
    assert!(timed("blocks without an end", || certificate::leaf(&begins)).is_err());
}

/// A Secret as the API server sends it: JSON, with all that may be in data, annotations and managed fields.
#[test]
fn a_secret_of_a_mebibyte_is_decoded_in_time_whoever_it_concerns() {
    let base64 = "QUJD".repeat(128 * 1024);
    let many: Vec<String> = (0..8_000).map(|it| format!(r#""k{it}":"QUJD""#)).collect();
    let fields: Vec<String> = (0..8_000).map(|it| format!(r#""f:k{it}":{{}}"#)).collect();
    let long = "x".repeat(200 * 1024);
    for issuer in ["cert-renew.io/issuer", "example.com/nobody"] {
        let json = format!(
            r#"{{"metadata":{{"name":"a","namespace":"b","annotations":{{"{issuer}":"x","example.com/long":"{long}",
            "cert-renew.io/names":"{long}"}},"managedFields":[{{"manager":"m","operation":"Update",
            "fieldsV1":{{"f:data":{{{}}}}}}}]}},"type":"kubernetes.io/tls",
            "data":{{{},"tls.crt":"{base64}","tls.key":"{base64}"}}}}"#,
            fields.join(","),
            many.join(","),
        );
        assert!(json.len() > 1024 * 1024);
        let thin = timed("a thin Secret", || {
            serde_json::from_str::<ThinSecret>(&json).unwrap()
        });
        let certificate = timed("its certificate", || thin.certificate());
        assert!(!matches!(certificate, CertificateState::Leaf(_)));
        let full = timed("a full Secret", || {
            serde_json::from_str::<FullSecret>(&json).unwrap()
        });
        // The pair, and a thousand of the keys that nothing names.
        assert_eq!(full.data.len(), 1_002);
    }
}

#[test]
fn all_that_annotations_can_hold_is_read_in_time() {
    for (key, item) in [
        ("names", "a.example,"),
        ("names", ","),
        ("workloads", "rc/a\n"),
        ("outputs", "a=key+key,"),
        ("rollout-on", "leaf,"),
        ("change-window", "Mon-Sun 00:00-24:00 UTC;"),
        ("renew-before", "1d"),
        ("lifetime", "1d"),
        ("unknown", "x"),
    ] {
        // The API server allows 256 KiB in all; one value alone may have them.
        let value = item.repeat(256 * 1024 / item.len());
        let annotations = BTreeMap::from([
            ("cert-renew.io/issuer".to_owned(), "x".to_owned()),
            (format!("cert-renew.io/{key}"), value),
        ]);
        let read = || Settings::read(&annotations, false, &NamespaceDefaults::default());
        let (_, problems) = timed(key, read);
        assert_eq!(problems.len(), 1, "{key}");
        assert!(problems[0].to_string().len() < 2_000, "{key}");
    }
}
