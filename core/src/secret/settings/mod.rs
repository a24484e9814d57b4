//! Annotations of a Secret → checked settings.
//!
//! A user who may edit a Secret may write anything there, so every value is bounded and none can stop the others:
//! [`Settings::read`] never fails, it returns what could be read and a [`Problem`] for each of the rest. State
//! annotations (`state.cert-renew.io/`) are never read here.

pub mod values;

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use crate::certificate::{Fingerprint, KeyType};
use crate::secret::annotations::Reader;
pub use crate::secret::annotations::{Blocks, MAX_ITEMS, Problem, separator_hint};
use crate::secret::data::outputs::{Output, is_data_key};
use crate::secret::keys;
use crate::secret::parts::Parts;
pub use crate::secret::settings::values::{
    IssuerRef, KeyRotation, NotAValue, RenewBefore, ServicePort,
};
use crate::secret::settings::values::{is_label, is_profile, parse_lifetime};
use crate::secret::workload::{RolloutMode, WorkloadRef};
use crate::text::hash::hash;
use crate::text::name::Name;
use crate::text::shown;
use crate::time::change_window::ChangeWindow;

/// The default class of an installation and of a Secret.
pub const DEFAULT_CLASS: &str = "default";

/// Longest `renew-now`, in bytes: it is also written as state.
const MAX_RENEW_NOW: usize = 256;
/// Most characters of an issuer that does not parse: longer than any that does.
const LONGEST_ISSUER: usize = 64;
/// Prefix of a `renew-now` value that does not wait until the certificate is older.
pub const FORCE: &str = "force";

/// The settings of one Secret, with its namespace's defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Who renews.
    pub issuer: IssuerRef,
    /// Names to ask for, in order and without duplicates; `None` means those of the present certificate.
    pub names: Option<Vec<Name>>,
    /// When to renew; `None` leaves it to ARI and the lifetime.
    pub renew_before: Option<RenewBefore>,
    /// ACME profile; `None` means the issuer's.
    pub profile: Option<Box<str>>,
    /// Requested lifetime of a certificate; `None` leaves it to the CA.
    pub lifetime: Option<Duration>,
    /// Whether a renewal makes a new key.
    pub key_rotation: KeyRotation,
    /// Type of new keys; `None` means the type of the present key.
    pub key_type: Option<KeyType>,
    /// Extra data keys, no name twice.
    pub outputs: Vec<Output>,
    /// Data key that holds the password of PKCS#12 outputs.
    pub pkcs12_password_key: Option<Box<str>>,
    /// How workloads take up a new leaf.
    pub rollout: RolloutMode,
    /// The parts of the Secret that they are rolled for.
    pub rollout_on: Parts,
    /// Workloads that are rolled although they do not refer to the Secret.
    pub workloads: Vec<WorkloadRef>,
    /// When Secret and workloads may change; `None` means always.
    pub change_window: Option<ChangeWindow>,
    /// Service that must serve the new leaf after a rollout.
    pub verify: Option<ServicePort>,
    /// Nothing is changed while true.
    pub paused: bool,
    /// Renew at once if this differs from the last value that was served.
    pub renew_now: Option<Box<str>>,
    /// The leaf to replace at once, with its key.
    pub revoked: Option<Fingerprint>,
    /// Name of the responsible installation; see [`Settings::is_for`].
    pub class: Option<Box<str>>,
    /// Whether the settings come from what declares the Secret.
    pub declared: bool,
}

/// Defaults of a namespace's Secrets; with an issuer, any annotation is an opt-in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceDefaults {
    /// Issuer of Secrets that name none.
    pub issuer: Option<IssuerRef>,
    /// As [`Settings::renew_before`].
    pub renew_before: Option<RenewBefore>,
    /// As [`Settings::change_window`].
    pub change_window: Option<ChangeWindow>,
    /// As [`Settings::rollout`].
    pub rollout: Option<RolloutMode>,
    /// As [`Settings::rollout_on`].
    pub rollout_on: Option<Parts>,
}

/// What was written as the issuer, in quotes for people: no issuer has such a name, so that it matches none.
fn unreadable(annotations: &BTreeMap<String, String>) -> IssuerRef {
    let written = annotations.get(keys::ISSUER).map(String::as_str);
    let written: String = { written.unwrap_or_default().chars() }
        .take(LONGEST_ISSUER)
        .collect();
    IssuerRef::Named(shown(&written).into())
}

impl Settings {
    /// The outputs, hashed; `None` if there are none.
    #[must_use]
    pub fn outputs_digest(&self) -> Option<u64> {
        let Self {
            outputs,
            pkcs12_password_key,
            ..
        } = self;
        (!outputs.is_empty()).then(|| hash(&format!("{outputs:?}{pkcs12_password_key:?}")))
    }

    /// Reads the annotations of a Secret; `managed` says whether it carries the label [`keys::MANAGED_LABEL`].
    ///
    /// `None` if it has not opted in: it names no issuer, and either its namespace has no default issuer or nothing on
    /// it is ours. The problems are returned in any case.
    #[must_use]
    pub fn read(
        annotations: &BTreeMap<String, String>,
        managed: bool,
        defaults: &NamespaceDefaults,
    ) -> (Option<Self>, Vec<Problem>) {
        use Blocks::{Both, Issue, Nothing, Rollout};
        let mut reader = Reader::new(annotations);
        let named = annotations.contains_key(keys::ISSUER);
        let issuer = reader.one(keys::ISSUER, Issue, IssuerRef::from_str);
        let mut settings = Self {
            issuer: issuer.unwrap_or_else(|| unreadable(annotations)),
            names: reader.list(keys::NAMES, Issue, Name::from_str),
            renew_before: reader.one(keys::RENEW_BEFORE, Nothing, RenewBefore::from_str),
            profile: reader.one(keys::PROFILE, Issue, |text| {
                check(
                    text,
                    is_profile,
                    "expected a profile's name of at most 64 letters, digits, '-', '_' and '.'",
                )
            }),
            lifetime: reader.one(keys::LIFETIME, Issue, parse_lifetime),
            key_rotation: reader
                .one(keys::KEY_ROTATION, Issue, KeyRotation::from_str)
                .unwrap_or_default(),
            key_type: reader.one(keys::KEY_TYPE, Issue, KeyType::from_str),
            outputs: reader
                .list(keys::OUTPUTS, Issue, Output::from_str)
                .unwrap_or_default(),
            pkcs12_password_key: reader.one(keys::PKCS12_PASSWORD_KEY, Issue, |text| {
                check(text, is_data_key, "expected a key of the Secret's data")
            }),
            rollout: RolloutMode::default(),
            rollout_on: reader
                .one(keys::ROLLOUT_ON, Rollout, Parts::from_str)
                .or(defaults.rollout_on)
                .unwrap_or_default(),
            workloads: reader
                .list(keys::WORKLOADS, Rollout, WorkloadRef::from_str)
                .unwrap_or_default(),
            change_window: reader.one(keys::CHANGE_WINDOW, Both, ChangeWindow::from_str),
            verify: reader.one(keys::VERIFY, Rollout, ServicePort::from_str),
            paused: reader
                .one(keys::PAUSED, Both, parse_flag)
                .unwrap_or_default(),
            renew_now: reader.one(keys::RENEW_NOW, Nothing, |text| {
                let fits = |text: &str| (1..=MAX_RENEW_NOW).contains(&text.len());
                check(text, fits, "expected 1 to 256 bytes, such as the date")
            }),
            revoked: reader.one(keys::REVOKED, Nothing, Fingerprint::from_str),
            class: reader.one(keys::CLASS, Both, |text| {
                check(text, is_label, "expected the class of an installation")
            }),
            declared: reader
                .one(keys::DECLARED, Nothing, parse_flag)
                .unwrap_or_default(),
        };
        let rollout = reader.one(keys::ROLLOUT, Rollout, RolloutMode::from_str);
        settings.rollout = rollout
            .or_else(|| defaults.rollout.clone())
            .unwrap_or_default();
        settings.renew_before = settings.renew_before.or(defaults.renew_before);
        settings.change_window = settings
            .change_window
            .or_else(|| defaults.change_window.clone());
        for (i, output) in settings.outputs.iter().enumerate() {
            if settings.outputs[..i]
                .iter()
                .any(|earlier| earlier.name == output.name)
            {
                let expected = "expected each data key once";
                reader.problem(keys::OUTPUTS, &output.to_string(), &expected, Issue);
            }
        }
        reader.check_unknown();

        let ours = managed || reader.any_known();
        match &defaults.issuer {
            _ if named => {}
            Some(issuer) if ours => settings.issuer = issuer.clone(),
            _ => {
                if ours {
                    let expected = "expected an issuer, since the namespace has no default one";
                    reader.problem(keys::ISSUER, "", &expected, Nothing);
                }
                return (None, reader.problems);
            }
        }
        (Some(settings), reader.problems)
    }

    /// Whether the installation of this class is responsible.
    #[must_use]
    pub fn is_for(&self, class: &str) -> bool {
        self.class.as_deref().unwrap_or(DEFAULT_CLASS) == class
    }
}

fn check(
    text: &str,
    fits: impl Fn(&str) -> bool,
    expected: &'static str,
) -> Result<Box<str>, &'static str> {
    if fits(text) {
        Ok(text.into())
    } else {
        Err(expected)
    }
}

fn parse_flag(text: &str) -> Result<bool, &'static str> {
    text.parse().map_err(|_| "expected true or false")
}

#[cfg(test)]
mod tests;
