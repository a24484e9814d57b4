//! Why the operator does nothing with a Secret, whatever that asks for: what `renew`, `revoke` and `resume` look at first.
//! Pure.

use cert_renew_core::config::{Config, Unseen, WatchConfig};
use cert_renew_core::secret::data::data_keys::TLS_TYPE;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::settings::{DEFAULT_CLASS, Settings};
use cert_renew_core::text::shown;

/// Why the operator does nothing with a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PassedOver {
    /// It does not see it, or does nothing at all; in a sentence.
    Nothing(String),
    /// It leaves it to the installation of another class.
    OfClass(OfClass),
}

/// The class of another installation, to which a Secret belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OfClass {
    /// Its name.
    pub(super) class: String,
    /// That it is another one, in a sentence.
    pub(super) why: String,
}

/// Why the operator does nothing with a Secret that has these settings, if so, as far as its config is known.
pub(super) fn passed_over(
    secret: &ThinSecret,
    settings: &Settings,
    config: Option<&Config>,
) -> Option<PassedOver> {
    let head = &secret.head;
    let watch = WatchConfig::default();
    let watch = config.map_or(&watch, |config| &config.watch);
    if let Some(unseen) = watch.misses(head.namespace(), secret.kind == TLS_TYPE, head.managed) {
        return Some(PassedOver::Nothing(of_unseen(unseen, secret)));
    }
    let config = config?;
    if !settings.is_for(&config.class) {
        let class = settings.class.as_deref().unwrap_or(DEFAULT_CLASS);
        let why = format!(
            "it belongs to another installation, {}: {class}, and this one is of class {}",
            keys::CLASS,
            config.class
        );
        return Some(PassedOver::OfClass(OfClass {
            class: class.into(),
            why,
        }));
    }
    let why = "everything is paused: the config has paused: true";
    (config.paused).then(|| PassedOver::Nothing(why.into()))
}

/// Why the operator does not see it.
fn of_unseen(unseen: Unseen, secret: &ThinSecret) -> String {
    let label = keys::MANAGED_LABEL;
    match unseen {
        Unseen::Namespace => format!(
            "cert-renew does not watch namespace {}: it is not among watch.namespaces of the config",
            secret.head.namespace()
        ),
        Unseen::Type => format!(
            "cert-renew does not see it: it is of type {}, and a Secret of another type than {TLS_TYPE} needs the label \
             {label}: \"true\"",
            shown(&secret.kind)
        ),
        Unseen::Label => format!(
            "cert-renew does not see it: the config has watch.select: label, so that each Secret needs the label {label}: \
             \"true\""
        ),
    }
}
