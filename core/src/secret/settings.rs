//! Annotations of a Secret → checked settings.
//!
//! A user who may edit a Secret may write anything there, so every value is bounded and none can stop the others:
//! [`Settings::read`] never fails, it returns what could be read and a [`Problem`] for each of the rest. State
//! annotations (`state.cert-renew.io/`) are never read here.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::certificate::{Fingerprint, KeyType};
use crate::secret::annotations::Reader;
pub use crate::secret::annotations::{Blocks, MAX_ITEMS, Problem};
use crate::secret::keys;
use crate::secret::outputs::{Output, is_data_key};
use crate::secret::parts::Parts;
pub use crate::secret::values::{IssuerRef, KeyRotation, NotAValue, RenewBefore, ServicePort};
use crate::secret::values::{is_label, is_profile, parse_lifetime};
use crate::secret::workload::{RolloutMode, WorkloadRef};
use crate::text::hash::hash;
use crate::text::name::Name;
use crate::time::change_window::ChangeWindow;

/// The default class of an installation and of a Secret.
pub const DEFAULT_CLASS: &str = "default";

/// Longest `renew-now`, in bytes: it is also written as state.
const MAX_RENEW_NOW: usize = 256;
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
            // No issuer has the empty name, so one that does not parse matches none.
            issuer: issuer.unwrap_or_else(|| IssuerRef::Named(Arc::from(""))),
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
mod tests {
    use super::*;
    use crate::secret::values::RenewBefore::{Before, Share};

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| (format!("cert-renew.io/{key}"), (*value).into()))
            .collect()
    }

    fn read(pairs: &[(&str, &str)]) -> (Option<Settings>, Vec<Problem>) {
        Settings::read(&annotations(pairs), false, &NamespaceDefaults::default())
    }

    fn with_issuer(name: &str) -> NamespaceDefaults {
        NamespaceDefaults {
            issuer: Some(name.parse().unwrap()),
            ..Default::default()
        }
    }

    #[test]
    fn reads_all_that_a_user_can_write() {
        let (settings, problems) = read(&[
            ("issuer", "letsencrypt"),
            (
                "names",
                "Shop.example.com, *.shop.example.com,\n10.0.0.1,shop.example.com.",
            ),
            ("renew-before", "33%"),
            ("profile", "tlsserver"),
            ("lifetime", "1d12h"),
            ("key-rotation", "never"),
            ("key-type", "rsa-3072"),
            ("outputs", "fullchain.pem=fullchain, tls.pem=key+fullchain"),
            ("pkcs12-password-key", "password"),
            ("rollout", "post:8080/-/reload"),
            ("rollout-on", "leaf, ca"),
            ("workloads", "deployment/web, rc/legacy"),
            ("change-window", "Mon-Fri 02:00-04:00 Europe/Berlin"),
            ("verify", "web:443"),
            ("paused", "true"),
            ("renew-now", "2026-11-23"),
            ("revoked", &"0a".repeat(32)),
            ("class", "edge"),
        ]);
        let settings = settings.unwrap();
        assert_eq!(problems, []);
        let texts = |items: &[&dyn ToString]| -> Vec<String> {
            items.iter().map(|i| i.to_string()).collect()
        };
        let names = settings.names.as_deref().unwrap();
        assert_eq!(
            names.iter().map(Name::to_string).collect::<Vec<_>>(),
            ["shop.example.com", "*.shop.example.com", "10.0.0.1"]
        );
        assert_eq!(
            texts(&[
                &settings.issuer,
                &settings.renew_before.unwrap(),
                settings.profile.as_ref().unwrap(),
                &settings.key_type.unwrap(),
                &settings.outputs[1],
                &settings.rollout,
                &settings.workloads[1],
                settings.change_window.as_ref().unwrap(),
                settings.verify.as_ref().unwrap(),
            ]),
            [
                "letsencrypt",
                "33%",
                "tlsserver",
                "rsa-3072",
                "tls.pem=key+fullchain",
                "post:8080/-/reload",
                "replicationcontroller/legacy",
                "Mon-Fri 02:00-04:00 Europe/Berlin",
                "web:443",
            ]
        );
        let lifetime = Duration::from_secs(36 * 3_600);
        assert_eq!(settings.lifetime, Some(lifetime));
        assert_eq!(settings.key_rotation, KeyRotation::Never);
        assert_eq!(settings.rollout_on.to_string(), "leaf,ca");
        assert_eq!(settings.pkcs12_password_key.as_deref(), Some("password"));
        assert_eq!(settings.renew_now.as_deref(), Some("2026-11-23"));
        assert_eq!(settings.revoked.unwrap().to_string(), "0a".repeat(32));
        assert!(settings.paused && settings.is_for("edge") && !settings.is_for(DEFAULT_CLASS));
    }

    #[test]
    fn the_issuer_alone_is_enough() {
        let (settings, problems) = read(&[("issuer", "external")]);
        let settings = settings.unwrap();
        assert_eq!(problems, []);
        assert_eq!(settings.issuer, IssuerRef::External);
        assert_eq!(
            (settings.names, settings.rollout.clone()),
            (None, RolloutMode::Restart)
        );
        assert!(!settings.paused && settings.class.is_none());
    }

    #[test]
    fn opting_in_takes_an_issuer_or_a_default_and_something_of_ours() {
        let foreign = BTreeMap::from([
            ("example.com/issuer".to_string(), "letsencrypt".to_string()),
            (keys::ROLLED_OUT.to_string(), "none".to_string()),
        ]);
        let ours = annotations(&[("rollout", "none")]);
        let named = annotations(&[("issuer", "zerossl")]);
        let misspelt = annotations(&[("isuer", "zerossl")]);
        let (none, some) = (NamespaceDefaults::default(), with_issuer("letsencrypt"));
        for (what, annotations, managed, defaults, issuer, problems) in [
            ("nothing of ours", &foreign, false, &some, None, 0),
            (
                "the label alone",
                &foreign,
                true,
                &some,
                Some("letsencrypt"),
                0,
            ),
            (
                "the label without a default",
                &foreign,
                true,
                &none,
                None,
                1,
            ),
            ("an annotation", &ours, false, &some, Some("letsencrypt"), 0),
            (
                "an annotation without a default",
                &ours,
                false,
                &none,
                None,
                1,
            ),
            ("its own issuer", &named, false, &some, Some("zerossl"), 0),
            ("a misspelt issuer", &misspelt, false, &some, None, 1),
        ] {
            let (settings, found) = Settings::read(annotations, managed, defaults);
            assert_eq!(
                settings.map(|s| s.issuer.to_string()).as_deref(),
                issuer,
                "{what}"
            );
            assert_eq!(found.len(), problems, "{what}: {found:?}");
        }
    }

    #[test]
    fn the_namespace_fills_in_what_the_secret_does_not_say() {
        let defaults = NamespaceDefaults {
            renew_before: Some(Share(33)),
            change_window: Some("02:00-04:00 UTC".parse().unwrap()),
            rollout: Some(RolloutMode::None),
            rollout_on: "leaf".parse().ok(),
            ..with_issuer("letsencrypt")
        };
        let (settings, _) =
            Settings::read(&annotations(&[("names", "a.example")]), false, &defaults);
        let settings = settings.unwrap();
        assert_eq!(settings.renew_before, defaults.renew_before);
        assert_eq!(settings.change_window, defaults.change_window);
        assert_eq!(settings.rollout, RolloutMode::None);
        assert_eq!(settings.rollout_on.to_string(), "leaf");
        let own = annotations(&[
            ("renew-before", "12h"),
            ("rollout", "restart"),
            ("rollout-on", "chain"),
        ]);
        let settings = Settings::read(&own, false, &defaults).0.unwrap();
        assert_eq!(
            settings.renew_before,
            Some(Before(Duration::from_secs(12 * 3600)))
        );
        assert_eq!(settings.rollout, RolloutMode::Restart);
        assert_eq!(settings.rollout_on.to_string(), "chain");
    }

    #[test]
    fn a_bad_value_blocks_only_what_it_governs() {
        use Blocks::{Both, Issue, Nothing, Rollout};
        let many = (0..=MAX_ITEMS)
            .map(|i| format!("n{i}.example,"))
            .collect::<String>();
        let long = "a".repeat(32 * 1024 + 1);
        let key = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----";
        for (name, value, blocks, message) in [
            (
                "issuer",
                "",
                Issue,
                "cert-renew.io/issuer: \"\": expected the name of an issuer in the config file, or external",
            ),
            ("issuer", "Let's", Issue, "\"Let's\": expected"),
            (
                "names",
                "a.example, b..example",
                Issue,
                "cert-renew.io/names: \"b..example\": expected a DNS name such as shop.example.com or *.example.com, or an IP address",
            ),
            ("names", " , ", Issue, "expected at least one"),
            ("names", &many, Issue, "expected at most 100"),
            ("names", &long, Issue, "expected at most 32768 bytes"),
            (
                "names",
                key,
                Issue,
                "a private key (not shown): expected no private key in an annotation",
            ),
            (
                "renew-before",
                "soon",
                Nothing,
                "expected a duration such as 30d",
            ),
            ("profile", "tls server", Issue, "expected a profile's name"),
            (
                "lifetime",
                "4m59s",
                Issue,
                "\"4m59s\": expected a lifetime from 5m to 3650d, such as 24h or 7d",
            ),
            ("lifetime", "3651d", Issue, "expected a lifetime from"),
            ("lifetime", "33%", Issue, "expected a lifetime from"),
            ("key-rotation", "yes", Issue, "expected always or never"),
            ("key-type", "ed25519", Issue, "expected one of ecdsa-p256"),
            (
                "outputs",
                "tls.pem=everything",
                Issue,
                "expected a part leaf",
            ),
            (
                "outputs",
                "a=key,a=leaf",
                Issue,
                "\"a=leaf\": expected each data key once",
            ),
            (
                "pkcs12-password-key",
                "a b",
                Issue,
                "expected a key of the Secret's data",
            ),
            (
                "rollout",
                "reload",
                Rollout,
                "expected restart, none, or post:",
            ),
            ("workloads", "pod/web", Rollout, "expected kind/name"),
            ("change-window", "at night", Both, "expected"),
            ("verify", "web.other:443", Rollout, "expected service:port"),
            ("paused", "yes", Both, "expected true or false"),
            ("renew-now", "", Nothing, "expected 1 to 256 bytes"),
            ("class", "a b", Both, "expected the class"),
            (
                "outptus",
                "\u{1b}[2J",
                Nothing,
                "cert-renew.io/outptus: \"\\u{1b}[2J\": expected a known annotation (issuer, names, ",
            ),
            ("managed", "true", Nothing, "expected it among the labels"),
        ] {
            let mut pairs = vec![("issuer", "letsencrypt")];
            pairs.retain(|(key, _)| *key != name);
            pairs.push((name, value));
            let (settings, problems) = read(&pairs);
            assert!(settings.is_some(), "{name}");
            let [problem] = &problems[..] else {
                panic!("{name} {value:.40}: {problems:?}")
            };
            assert_eq!(problem.blocks, blocks, "{name}");
            let text = problem.to_string();
            assert!(text.contains(message), "{name}: {text}");
            assert!(
                !text.contains("MIGH") && !text.chars().any(char::is_control),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_kept_still_blocks() {
        let many = ["b..d"; 40].join(",");
        let (_, problems) = read(&[("issuer", "a"), ("names", &many), ("rollout", "?")]);
        assert_eq!(problems.len(), 20);
        assert!(
            problems.iter().any(|p| p.blocks.issue())
                && problems.iter().any(|p| p.blocks.rollout())
        );
    }

    /// The same in every run: a failure can be repeated.
    #[test]
    fn hostile_values_never_panic() {
        let pieces = [
            "",
            ",",
            ";",
            "=",
            "+",
            ":",
            "/",
            "-",
            "%",
            "*.",
            "post:",
            "\0",
            "\u{1b}[31m",
            "\r\n",
            "\u{202e}",
            "\u{feff}",
            "ß",
            "İ",
            "\u{1f600}",
            "xn--",
            "a.example",
            "Mon",
            "-Fri ",
            "02:00",
            "-24:00 ",
            "UTC",
            "99999999999",
            "deployment/",
            "key",
            "pkcs12",
            "true",
            "::1",
            "\u{0301}",
            " ",
        ];
        let mut state: u32 = 1;
        let mut next = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        let names = [
            "issuer",
            "names",
            "renew-before",
            "profile",
            "lifetime",
            "key-rotation",
            "key-type",
            "outputs",
            "pkcs12-password-key",
            "rollout",
            "workloads",
            "change-window",
            "verify",
            "paused",
            "renew-now",
            "class",
            "\u{7f}",
        ];
        for round in 0..3_000 {
            let pairs: Vec<(&str, String)> = names
                .iter()
                .map(|name| {
                    let text: String = (0..next(8)).map(|_| pieces[next(pieces.len())]).collect();
                    // Some are as long as the API server allows.
                    let repeat = if round % 100 == 0 {
                        256 * 1024 / text.len().max(1)
                    } else {
                        1
                    };
                    (*name, text.repeat(repeat))
                })
                .collect();
            let pairs: Vec<(&str, &str)> = pairs
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            let (settings, problems) = read(&pairs);
            assert!(settings.is_some());
            for problem in &problems {
                let text = problem.to_string();
                assert!(
                    text.len() < 4096 && !text.chars().any(char::is_control),
                    "{text}"
                );
            }
        }
    }
}
