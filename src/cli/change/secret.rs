//! `cert-renew resume`, and what the commands share that read and annotate one Secret with the user's own rights.
//!
//! The operator does the work; the commands write what a user could write with kubectl.

use std::process::ExitCode;

use cert_renew_core::rollout::HaltNote;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::settings::{NamespaceDefaults, Settings};
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
        if let Some(why) = idle.or_else(|| paused(&secret, &operator)) {
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
        println!("{namespace}/{name}: goes on; it was halted at {halted}");
        Ok(ExitCode::SUCCESS)
    })
}

/// The pause that keeps the operator from doing anything about a Secret.
pub(in crate::cli) fn paused(secret: &ThinSecret, operator: &Operator) -> Option<String> {
    let config = operator.config.as_ref();
    if config.is_some_and(|config| config.paused) {
        return Some("everything is paused: the config has paused: true".into());
    }
    let head = &secret.head;
    let defaults = NamespaceDefaults::default();
    let (settings, _) = Settings::read(head.annotations()?, head.managed, &defaults);
    let paused = settings.is_some_and(|settings| settings.paused);
    paused.then(|| format!("it is paused, by {}", keys::PAUSED))
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
