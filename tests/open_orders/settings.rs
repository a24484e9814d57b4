//! Each setting on which an order depends, changed while the order waits.

use std::fs;

use test_bench::report::Report;
use test_bench::{Context as _, Result, ensure};

/// What an order's record copies, or what it brings depends on: each has a test in which it changes while the order
/// waits, with success soon after. A row is a setting and the test.
const SETTINGS: [(&str, &str); 38] = [
    (
        "solver: http01 to dns01",
        "open_orders::routes::an_order_that_waits_for_a_route_goes_on_by_dns_and_the_ca_is_told_of_no_other_way",
    ),
    (
        "solver: dns01 to http01",
        "open_orders::routes::an_order_that_waits_for_dns_goes_on_by_a_route",
    ),
    (
        "solver: dnsPersist01 to dns01",
        "open_orders::dns::an_order_that_waits_for_a_record_of_the_users_goes_on_by_one_of_ours",
    ),
    (
        "solver: zones",
        "open_orders::dns::a_cname_leads_no_proof_out_of_the_zones_of_its_solver",
    ),
    (
        "dns01.provider",
        "open_orders::dns::another_dns_host_is_taken_by_the_order_that_waits",
    ),
    (
        "dns01.credentials",
        "open_orders::dns::credentials_that_are_named_anew_are_taken_by_the_order_that_waits",
    ),
    (
        "dns01.credentials: what the Secret holds",
        "open_orders::dns::a_key_that_is_corrected_in_its_secret_is_taken_at_the_next_try",
    ),
    (
        "dns01.settings: keyName",
        "open_orders::dns::a_key_name_that_is_corrected_is_taken_by_the_order_that_waits",
    ),
    (
        "dns01.settings: server",
        "open_orders::dns::a_dns_server_that_is_corrected_is_taken_by_the_order_that_waits",
    ),
    (
        "dns01.propagation.check",
        "open_orders::dns::a_propagation_check_that_is_turned_off_is_left_out_by_the_order_that_waits",
    ),
    (
        "dns01.propagation.servers",
        "open_orders::dns::propagation_servers_that_are_corrected_are_asked_by_the_order_that_waits",
    ),
    (
        "dns01.propagation.timeout",
        "open_orders::dns::propagation_servers_that_are_corrected_are_asked_by_the_order_that_waits",
    ),
    (
        "dns01.propagation.wait",
        "open_orders::dns::another_resolver_and_a_shorter_wait_are_taken_by_the_order_that_waits",
    ),
    (
        "solver: resolvers",
        "open_orders::dns::resolvers_of_a_solver_that_are_corrected_are_asked_by_the_order_that_waits",
    ),
    (
        "dns.nameservers",
        "open_orders::dns::another_resolver_and_a_shorter_wait_are_taken_by_the_order_that_waits",
    ),
    (
        "the place of the record: a CNAME",
        "open_orders::dns::a_cname_that_is_corrected_is_followed_by_the_order_that_waits",
    ),
    (
        "http01.route",
        "open_orders::routes::a_path_type_and_a_kind_of_route_that_are_corrected_are_taken_by_orders_that_wait",
    ),
    (
        "http01.ingress.pathType",
        "open_orders::routes::a_path_type_and_a_kind_of_route_that_are_corrected_are_taken_by_orders_that_wait",
    ),
    (
        "http01.ingress.class",
        "open_orders::routes::the_class_of_an_ingress_and_the_gateway_of_a_route_that_are_corrected_are_taken",
    ),
    (
        "http01.ingress.annotations",
        "open_orders::routes::the_class_of_an_ingress_and_the_gateway_of_a_route_that_are_corrected_are_taken",
    ),
    (
        "http01.gateway.parentRefs",
        "open_orders::routes::the_class_of_an_ingress_and_the_gateway_of_a_route_that_are_corrected_are_taken",
    ),
    (
        "http01.selfCheck",
        "open_orders::routes::a_self_check_that_is_turned_off_is_left_out_and_what_was_waited_for_is_told_before",
    ),
    (
        "key-type",
        "open_orders::secret::what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited",
    ),
    (
        "profile",
        "open_orders::secret::what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited",
    ),
    (
        "lifetime",
        "open_orders::secret::what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited",
    ),
    (
        "names",
        "open_orders::secret::what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited",
    ),
    (
        "issuer",
        "open_orders::secret::what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited",
    ),
    (
        "the key that key-rotation keeps",
        "open_orders::secret::a_key_that_is_put_there_to_be_kept_while_an_order_waits_is_used",
    ),
    (
        "key-rotation",
        "open_orders::secret::an_order_for_a_key_that_was_to_be_kept_is_made_again_when_it_need_not_be",
    ),
    (
        "revoked",
        "open_orders::secret::an_order_for_a_key_that_was_to_be_kept_is_made_again_when_it_need_not_be",
    ),
    (
        "outputs",
        "open_orders::secret::outputs_that_are_asked_for_while_an_order_waits_are_written_with_its_certificate",
    ),
    (
        "renew-before",
        "open_orders::secret::an_order_that_waits_goes_when_the_renewal_is_put_off",
    ),
    (
        "paused, change-window",
        "open_orders::secret::an_order_that_waits_keeps_to_a_pause_and_to_a_change_window",
    ),
    (
        "class, allow",
        "open_orders::secret::an_order_that_waits_goes_when_nobody_may_have_it_any_more",
    ),
    (
        "the issuer's directory",
        "reload::an_issuer_that_moves_to_another_ca_leaves_the_order_there_and_makes_one_here",
    ),
    (
        "the issuer's chain",
        "open_orders::issuer::another_chain_that_is_asked_for_while_an_order_waits_is_taken",
    ),
    (
        "the issuer itself",
        "causes::an_order_waits_while_its_issuer_is_not_in_the_config",
    ),
    (
        "the Secret's uid",
        "faults::meanwhile::a_secret_that_is_made_anew_while_the_ca_issues_is_renewed_itself",
    ),
];

/// Annotations that an order does not depend on, and why.
const OTHERS: [(&str, &str); 8] = [
    (
        "pkcs12-password-key",
        "read together with outputs, from the Secret as it is written",
    ),
    ("rollout", "what comes after the write"),
    ("rollout-on", "what comes after the write"),
    ("workloads", "what comes after the write"),
    ("verify", "what comes after the write"),
    ("renew-now", "it has the order tried at once"),
    (
        "declared",
        "not chosen by a user; a Secret that nothing declares is left alone",
    ),
    ("managed", "the label that opts a Secret in"),
];

/// Whether a row of the table has this setting, by its whole name.
fn has_row(setting: &str) -> bool {
    let mut rows = SETTINGS.iter();
    rows.any(|(named, _)| named.split(", ").any(|it| it == setting))
}

#[test]
fn each_annotation_is_changed_while_an_order_waits_or_the_order_does_not_depend_on_it() {
    for key in cert_renew_core::secret::keys::SETTINGS {
        let short = key.strip_prefix(cert_renew_core::secret::keys::PREFIX);
        let short = short.unwrap_or(key);
        let is_other = OTHERS.iter().any(|(named, _)| *named == short);
        assert!(
            has_row(short) != is_other,
            "{key} needs a row in one of the two tables"
        );
    }
    for (named, _) in OTHERS {
        let key = format!("{}{named}", cert_renew_core::secret::keys::PREFIX);
        assert!(
            cert_renew_core::secret::keys::SETTINGS.contains(&&*key),
            "{key} is no annotation"
        );
    }
}

/// No field of what a record copies is without a row: a new one does not compile here until somebody has thought of it.
#[test]
fn each_setting_that_an_order_depends_on_is_changed_while_the_order_waits() -> Result<()> {
    use cert_renew::cluster::challenge_routes::Routed;
    use cert_renew::cluster::order_records::{Order, Txt};
    use cert_renew_core::config::{Dns01, Http01, Propagation, Route};
    let row = |setting: &str| SETTINGS.iter().any(|(named, _)| named.contains(setting));
    let check = |settings: &[&str]| {
        for setting in settings {
            assert!(row(setting), "{setting} has no row");
        }
    };
    // What is not told of here is no setting: the order's own places, states and times.
    let _ = |order: Order, txt: Txt, routed: Routed| {
        let Order {
            namespace: _,
            name: _,
            uid: _,
            issuer: _,
            directory: _,
            account: _,
            url: _,
            names: _,
            profile: _,
            lifetime: _,
            reason: _,
            expected: _,
            replaced: _,
            created: _,
            authorizations: _,
            expires: _,
            txt: _,
            routes: _,
        } = order;
        let Txt {
            of: _,
            at: _,
            zone: _,
            value: _,
            solver: _,
        } = txt;
        let Routed {
            host: _,
            path: _,
            solver: _,
        } = routed;
    };
    check(&["the Secret's uid", "issuer", "the issuer's directory"]);
    check(&["names", "profile", "lifetime", "the place of the record"]);
    let _ = |dns01: Dns01, propagation: Propagation, http01: Http01, route: Route| {
        let Dns01 {
            provider: _,
            credentials: _,
            settings: _,
            propagation: _,
        } = dns01;
        let Propagation {
            check: _,
            servers: _,
            timeout: _,
            wait: _,
        } = propagation;
        let Http01 {
            route: _,
            self_check: _,
        } = http01;
        match route {
            Route::Shared => {}
            Route::Ingress {
                class: _,
                annotations: _,
                path_type: _,
            } => {}
            Route::Gateway { parents: _ } => {}
        }
    };
    check(&["provider", "credentials", "settings", "propagation"]);
    check(&["check", "servers", "timeout", "wait", "route", "selfCheck"]);
    check(&["class", "annotations", "pathType", "parentRefs"]);
    for (setting, test) in SETTINGS {
        let (module, name) = test.rsplit_once("::").context("no module")?;
        let module = module.replace("::", "/");
        let root = env!("CARGO_MANIFEST_DIR");
        let file = |suffix| fs::read_to_string(format!("{root}/tests/{module}{suffix}")).ok();
        let text = file(".rs").or_else(|| file("/mod.rs")).unwrap_or_default();
        ensure!(
            text.contains(&format!("fn {name}(")),
            "{setting}: {test} does not exist"
        );
    }
    let mut report = Report::new("open-orders", "cargo test --test integration open_orders::");
    report.count("open_orders.settings", SETTINGS.len(), "rows")?;
    eprintln!("{}", report.finish()?);
    Ok(())
}
