//! `cert-renew resume`, and what the commands share that read and annotate one Secret with the user's own rights.
//!
//! The operator does the work; the commands write what a user could write with kubectl.

use std::process::ExitCode;

use cert_renew_core::assess;
use cert_renew_core::rollout::HaltNote;
use cert_renew_core::secret::data::data_keys::TLS_TYPE;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::settings::{NamespaceDefaults, Settings};
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::time::UnixTime;
use clap::Parser;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

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
        let (why, opens) = halt_stays(&secret, &operator);
        if let Some(why) = idle.or(why) {
            let place = format!("{namespace}/{name}");
            return Err(Failure(format!("{place} would not go on: {why}")));
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
        let when = opens.map_or_else(String::new, |at| {
            format!(" when its change window opens, at {at}")
        });
        println!("{namespace}/{name}: goes on{when}; it was halted at {halted}");
        Ok(ExitCode::SUCCESS)
    })
}

/// Why the rollout of a Secret would not go on, and when its change window opens, as far as that is known here.
fn halt_stays(secret: &ThinSecret, operator: &Operator) -> (Option<String>, Option<UnixTime>) {
    let head = &secret.head;
    let Some(config) = operator.config.as_ref() else {
        let (settings, _) = { head.annotations() }.map_or((None, Vec::new()), |annotations| {
            Settings::read(annotations, head.managed, &NamespaceDefaults::default())
        });
        let paused = settings.is_some_and(|settings| settings.paused);
        return (paused.then(is_paused), None);
    };
    if config.paused {
        return (
            Some("everything is paused: the config has paused: true".into()),
            None,
        );
    }
    let key = SecretRef::new(head.namespace(), head.name());
    let unseen = config
        .watch
        .misses(&key.namespace, secret.kind == TLS_TYPE, head.managed);
    let assessment = assess::of_thin(UnixTime::now(), &key, secret, config);
    let Some(assessment) = assessment.filter(|_| unseen.is_none()) else {
        let why = format!(
            "this installation, of class {}, does not manage it",
            config.class
        );
        return (Some(why), None);
    };
    let mut problems = assessment.problems.iter();
    let why = if assessment.settings.paused {
        Some(is_paused())
    } else {
        let blocking = problems.find(|problem| problem.blocks.rollout());
        blocking.map(|problem| format!("an annotation cannot be followed: {problem}"))
    };
    (why, assessment.opens)
}

fn is_paused() -> String {
    format!("it is paused, by {}", keys::PAUSED)
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
