//! `cert-renew resume`, and what the commands share that read and annotate one Secret with the user's own rights.
//!
//! The operator does the work; the commands write what a user could write with kubectl. A private key is decoded only to see
//! whether it is the certificate's.

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;

use cert_renew_core::assess;
use cert_renew_core::certificate::pair::{self, PairFault};
use cert_renew_core::config::Config;
use cert_renew_core::rollout::HaltNote;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::settings::{IssuerRef, NamespaceDefaults, Settings};
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use clap::Parser;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::passed_over::{OfClass, PassedOver, passed_over};
use crate::cli::connection::kube_flags::{NamespaceFlags, OperatorNamespace};
use crate::cli::connection::operator::{Leader, Operator};
use crate::cli::{CommandResult, Failure, block_on};

/// The field manager of the writes.
pub(in crate::cli) const MANAGER: &str = "cert-renew-cli";

#[derive(Debug, Parser)]
pub(in crate::cli) struct Resume {
    /// The Secret whose rollout was halted, as NAMESPACE/NAME or NAME
    #[arg(value_name = "NAME")]
    secret: String,
    #[command(flatten)]
    place: NamespaceFlags,
    #[command(flatten)]
    operator: OperatorNamespace,
}

/// Resumes a halted rollout.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(in crate::cli) fn resume(args: Resume) -> CommandResult {
    block_on(async {
        let client = args.place.client().await?;
        let (namespace, name) = args.place.of(&client, &args.secret)?;
        let secret = get(&client, &namespace, &name).await?;
        let halted = secret.head.annotation(keys::ROLLOUT_HALTED);
        let Some(halted) = halted.filter(|halted| HaltNote::holds(halted)) else {
            println!("{namespace}/{name}: its rollout is not halted");
            return Ok(ExitCode::SUCCESS);
        };
        let operator = Operator::look(&client, &args.operator.operator_namespace).await?;
        let idle = operator.out_of_action();
        // Where there is no operator at all, it may be in another namespace, and finds the note.
        let idle = idle.filter(|_| operator.leader != Leader::NoLease);
        if let Some(why) = idle {
            return Err(Failure(format!(
                "{namespace}/{name} would not go on: {why}"
            )));
        }
        let waits_for = without_halt(UnixTime::now(), &secret, operator.config.as_ref());
        let waits_for = waits_for.map_err(|why| Failure(format!("{namespace}/{name} {why}")))?;
        // What a renewal is about to replace need not fit.
        if !waits_for.renewal
            && let Some(why) = unfit(&client, &secret, operator.config.as_ref()).await?
        {
            return Err(Failure(format!(
                "{namespace}/{name} would not go on: {why}"
            )));
        }
        // Without the note the failed workload would be first again, and hold the others back again.
        let resumed = halted.parse().ok().map(|note: HaltNote| {
            let note = HaltNote {
                resumed: true,
                ..note
            };
            note.to_string()
        });
        let patch = json!({"metadata": {"annotations": {keys::ROLLOUT_HALTED: resumed}}});
        annotate(&client, &namespace, &name, &patch).await?;
        println!("{namespace}/{name}: goes on{waits_for}; it was halted at {halted}");
        Ok(ExitCode::SUCCESS)
    })
}

/// What a rollout waits for without its halt, as far as that is known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct WaitsFor {
    /// The renewal that is due: what the Secret holds is about to be replaced.
    renewal: bool,
    /// The change window, which opens then.
    opens: Option<UnixTime>,
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.renewal, self.opens) {
            (false, None) => Ok(()),
            (false, Some(at)) => write!(f, " when its change window opens, at {at}"),
            (true, None) => f.write_str(" after the renewal that is due"),
            (true, Some(at)) => write!(
                f,
                " after the renewal that is due; its change window opens at {at}"
            ),
        }
    }
}

/// What the rollout of a Secret waits for without its halt; or why it would not go on, as the end of a sentence about the
/// Secret.
fn without_halt(
    now: UnixTime,
    secret: &ThinSecret,
    config: Option<&Config>,
) -> Result<WaitsFor, String> {
    let stays = |why: String| format!("would not go on: {why}");
    let head = &secret.head;
    let settings = settings_of(secret, config);
    let passed_over = settings.and_then(|settings| passed_over(secret, &settings, config));
    match passed_over {
        Some(PassedOver::Nothing(why)) => return Err(stays(why)),
        Some(PassedOver::OfClass(OfClass { why, .. })) => {
            return Err(format!(
                "is not resumed: {why}; --operator-namespace names the namespace of that one"
            ));
        }
        None => {}
    }
    let key = SecretRef::new(head.namespace(), head.name());
    let assessment = match config {
        Some(config) => assess::of_thin(now, &key, secret, config),
        None => assess::of_thin_alone(now, &key, secret),
    };
    let assessment = match (assessment, config) {
        (Some(assessment), _) => assessment,
        (None, Some(config)) => {
            let class = &config.class;
            return Err(stays(format!(
                "this installation, of class {class}, does not manage it"
            )));
        }
        // The config, which is not known, may give it an issuer.
        (None, None) => return Ok(WaitsFor::default()),
    };
    if assessment.settings.paused {
        return Err(stays(is_paused()));
    }
    let mut problems = assessment.problems.iter();
    if let Some(problem) = problems.find(|problem| problem.blocks.rollout()) {
        let why = format!("an annotation is invalid: {problem}");
        return Err(stays(why));
    }
    let is_due = assessment.renewal.is_ok_and(|due| due.at <= now);
    // Anything is better than a certificate that has expired.
    let served_expired = matches!(assessment.rolled_out,
        Some(RolledOut::Leaf { not_after, .. }) if not_after <= now);
    let expired = served_expired && assessment.leaf.is_ok();
    Ok(WaitsFor {
        renewal: is_due && assessment.held_until.is_none() && !expired,
        opens: assessment.opens,
    })
}

fn is_paused() -> String {
    format!("it is paused, by {}", keys::PAUSED)
}

fn settings_of(secret: &ThinSecret, config: Option<&Config>) -> Option<Settings> {
    let head = &secret.head;
    let (unset, none) = (NamespaceDefaults::default(), BTreeMap::new());
    let defaults = config.map_or(&unset, |config| config.namespace(head.namespace()));
    let annotations = head.annotations().unwrap_or(&none);
    Settings::read(annotations, head.managed, defaults).0
}

/// Why no workload is restarted for what a Secret holds, if so.
async fn unfit(
    client: &Client,
    secret: &ThinSecret,
    config: Option<&Config>,
) -> Result<Option<String>, Failure> {
    let settings = settings_of(secret, config);
    let external = settings.is_some_and(|it| it.issuer == IssuerRef::External);
    let fault = pair_fault(client, secret, external).await?;
    // What no server can load is written in another form by the operator.
    let fault = fault.filter(|it| external || !matches!(it, PairFault::Unservable(_)));
    let in_words = |it: PairFault| {
        format!(
            "its certificate and key cannot be used: {}",
            error_chain(&it)
        )
    };
    Ok(fault.map(in_words))
}

/// What is wrong with the pair of a Secret, which is read again with its key.
pub(super) async fn pair_fault(
    client: &Client,
    secret: &ThinSecret,
    external: bool,
) -> Result<Option<PairFault>, Failure> {
    let (namespace, name) = (secret.head.namespace(), secret.head.name());
    let api: Api<FullSecret> = Api::namespaced(client.clone(), namespace);
    let full = api.get(name).await;
    let full =
        full.map_err(|error| Failure::new(&format!("reading Secret {namespace}/{name}"), &error))?;
    let (certificate, private_key) = full.pair();
    let look = pair::Strictness {
        external,
        der: full.place().der,
    };
    Ok(pair::check_rollable(certificate, private_key, UnixTime::now(), look).err())
}

pub(in crate::cli) async fn get(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<ThinSecret, Failure> {
    let api: Api<ThinSecret> = Api::namespaced(client.clone(), namespace);
    api.get(name)
        .await
        .map_err(|error| Failure::new(&format!("reading Secret {namespace}/{name}"), &error))
}

pub(in crate::cli) async fn annotate(
    client: &Client,
    namespace: &str,
    name: &str,
    patch: &serde_json::Value,
) -> Result<(), Failure> {
    let api: Api<ThinSecret> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    api.patch(name, &params, &Patch::Merge(patch))
        .await
        .map(drop)
        .map_err(|error| Failure::new(&format!("annotating Secret {namespace}/{name}"), &error))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{from_value, json};

    use super::*;

    const CONFIG: &str = "issuers: {le: {directory: \"https://ca.example/\", allow: [{namespaces: [\"*\"], names: [\"**.example\"]}]}}\n";
    /// What the workloads have.
    const SERVED: &str = "state.cert-renew.io/rolled-out";

    /// A Secret with a certificate, when that begins to be valid, and for how long it is.
    fn secret(annotations: &[(&str, &str)]) -> (ThinSecret, UnixTime, Duration) {
        use base64::Engine as _;
        let pem = include_bytes!("../../../testdata/certificates/good.pem");
        let leaf = cert_renew_core::certificate::leaf(pem).unwrap();
        let mut all = BTreeMap::from([
            ("cert-renew.io/issuer", "le"),
            ("cert-renew.io/names", "a.example"),
        ]);
        all.extend(annotations.iter().copied());
        let data = base64::engine::general_purpose::STANDARD.encode(pem);
        let secret = json!({"type": "kubernetes.io/tls", "data": {"tls.crt": data},
            "metadata": {"namespace": "shop", "name": "tls", "uid": "1", "annotations": all}});
        let secret = from_value(secret).unwrap();
        (secret, leaf.not_before, leaf.lifetime())
    }

    fn judged(annotations: &[(&str, &str)], config: Option<&str>) -> Result<WaitsFor, String> {
        let (secret, since, lifetime) = secret(annotations);
        let config = config.map(|more| Config::parse(&format!("{CONFIG}{more}")).unwrap());
        without_halt(since + lifetime / 2, &secret, config.as_ref())
    }

    /// Its names are not those that are asked for: a renewal is due.
    #[test]
    fn a_rollout_waits_for_the_renewal_that_is_due_unless_what_is_served_has_expired() {
        let (_, since, lifetime) = secret(&[]);
        let other = "ab".repeat(32);
        let until = |at: UnixTime| format!("{other} {at}");
        let (lasts, expired) = (until(since + lifetime), until(since));
        for (annotations, waits) in [
            (vec![], true),
            (vec![(SERVED, &*lasts)], true),
            (vec![(SERVED, &*expired)], false),
            (vec![("cert-renew.io/issuer", "external")], false),
        ] {
            for config in [None, Some("")] {
                let said = judged(&annotations, config).unwrap();
                assert_eq!(said.renewal, waits, "{annotations:?} {config:?}");
                assert_eq!(said.to_string().contains("the renewal that is due"), waits);
            }
        }
    }

    /// What stands on the Secret itself counts also where the config cannot be read.
    #[test]
    fn without_the_config_the_secret_itself_is_judged() {
        let window = ("cert-renew.io/change-window", "Mon 00:00-00:01 UTC");
        for config in [None, Some("")] {
            let misread = judged(&[("cert-renew.io/verify", "web")], config);
            assert!(misread.unwrap_err().contains("cert-renew.io/verify"));
            let paused = judged(&[("cert-renew.io/paused", "true")], config);
            assert!(paused.unwrap_err().contains("it is paused"));
            let shut = judged(&[window], config).unwrap();
            assert!(shut.opens.is_some(), "{config:?}");
        }
    }

    #[test]
    fn of_several_reasons_the_one_that_ends_last_is_told() {
        let classed = [
            ("cert-renew.io/class", "edge"),
            ("cert-renew.io/paused", "true"),
        ];
        let said = judged(&classed, Some("paused: true")).unwrap_err();
        assert!(
            said.starts_with("is not resumed: it belongs to another installation"),
            "{said}"
        );
        let said = judged(&classed[1..], Some("paused: true")).unwrap_err();
        assert!(said.contains("everything is paused"), "{said}");
        let unwatched = judged(&classed, Some("watch: {namespaces: [blog]}")).unwrap_err();
        assert!(
            unwatched.contains("does not watch namespace shop"),
            "{unwatched}"
        );
    }
}
