//! Whether asking for a renewal would do anything, and if not, why. Pure.

use cert_renew_core::assess::{self, Assessment};
use cert_renew_core::config::{Config, Labels};
use cert_renew_core::schedule::due::{Never, Reason};
use cert_renew_core::schedule::rate_limits::{self, AccountId, Claim, Hold, IssuanceHistory};
use cert_renew_core::secret::declared;
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::settings::{IssuerRef, NamespaceDefaults, Problem, Settings};
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::text::hash::hash;
use cert_renew_core::time::{UnixTime, duration};
use cert_renew_core::verdict::Why;

use crate::cli::change::passed_over::{OfClass, PassedOver, passed_over};

/// A request for a renewal that is about to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    /// The value of `renew-now`; none where something else asks for it, which forgets no back-off.
    pub(super) value: Option<&'a str>,
    /// Whether the value forces the renewal.
    pub(super) force: bool,
    /// Whether key and certificate do not belong together, or no server can load them: a good cause.
    pub(super) is_broken: bool,
}

/// What will be done about a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::change) enum Verdict {
    /// It is renewed, for all that can be known here.
    Renews,
    /// It is renewed when its change window opens.
    Waits(UnixTime),
    /// Nothing is known against it, as this part of the operator cannot be read.
    Unknown(&'static str),
    /// Nothing would happen before this instant, and why.
    NotBefore(UnixTime, String),
    /// It is left to another installation.
    OfClass(OfClass),
    /// Nothing would happen, and why.
    Nothing(String),
}

impl Verdict {
    /// Why nothing would happen now, or not by this installation.
    pub(super) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Renews | Self::Waits(_) | Self::Unknown(_) => None,
            Self::NotBefore(_, why) | Self::OfClass(OfClass { why, .. }) | Self::Nothing(why) => {
                Some(why)
            }
        }
    }
}

impl From<PassedOver> for Verdict {
    fn from(why: PassedOver) -> Self {
        match why {
            PassedOver::Nothing(why) => Self::Nothing(why),
            PassedOver::OfClass(of) => Self::OfClass(of),
        }
    }
}

/// Judges a wish by the Secret, and by as much of the operator as is known.
pub(super) fn verdict(
    now: UnixTime,
    secret: &ThinSecret,
    wish: Wish<'_>,
    (config, labels): (Option<&Config>, Labels<'_>),
    account: impl Fn(AccountId) -> Option<IssuanceHistory>,
) -> Verdict {
    let nothing = |why: String| Verdict::Nothing(why);
    let head = &secret.head;
    if head.deleting {
        return nothing("it is being deleted".into());
    }
    let none = std::collections::BTreeMap::new();
    let annotations = head.annotations().unwrap_or(&none);
    let unset = NamespaceDefaults::default();
    let defaults = config.map_or(&unset, |config| config.namespace(head.namespace()));
    let (settings, problems) = Settings::read(annotations, head.managed, defaults);
    let settings = match settings {
        Some(settings) if head.concerns_us() => settings,
        _ => return nothing(not_annotated(secret, config.is_some())),
    };
    if let Some(why) = passed_over(secret, &settings, config) {
        return why.into();
    }
    if let Some(why) = left_alone(head).filter(|_| settings.issuer != IssuerRef::External) {
        return nothing(why);
    }
    let Some(config) = config else {
        return match undeclared(head).or_else(|| of_settings(&settings, &problems)) {
            Some(why) => nothing(why),
            None => Verdict::Unknown("its config"),
        };
    };
    let key = SecretRef {
        namespace: head.namespace().into(),
        name: head.name().into(),
    };
    let view = (config, labels);
    let Some(assessment) = assess::of_thin_labelled(now, &key, secret, view) else {
        return nothing(not_annotated(secret, true));
    };
    if let Some(why) = of_settings(&assessment.settings, &assessment.problems) {
        match assessment.renewal {
            // Close to its end it is renewed although an annotation is invalid.
            Ok(due) if due.at <= now && assessment.leaf.is_ok() => {}
            Ok(due) if assessment.leaf.is_ok() => return Verdict::NotBefore(due.at, why),
            _ => return nothing(why),
        }
    }
    if let Err(never) = assessment.renewal {
        return nothing(of_never(never, &assessment));
    }
    let account = account(assessment.account);
    let unread = account.is_none();
    let mut account = account.unwrap_or_default();
    // With other settings than those that failed it is tried at once.
    let (subject, settings) = (hash(&key.to_string()), head.digest());
    account.mend(|tried| tried.subject == subject && tried.settings != settings);
    match held(now, &assessment, wish, &account) {
        Some((until, why)) => Verdict::NotBefore(until, why),
        None if unread => Verdict::Unknown("its failure history"),
        None => assessment.opens.map_or(Verdict::Renews, Verdict::Waits),
    }
}

/// What its annotations alone say against it.
fn of_settings(settings: &Settings, problems: &[Problem]) -> Option<String> {
    if settings.issuer == IssuerRef::External {
        return Some(format!(
            "{}: external means that somebody else renews it",
            keys::ISSUER
        ));
    }
    if settings.paused {
        return Some(format!("it is paused, by {}", keys::PAUSED));
    }
    let mut blocking = problems.iter().filter(|problem| problem.blocks.issue());
    let first = blocking.next()?;
    let mut why = format!("an annotation is invalid: {first}");
    for problem in blocking {
        why += &format!("; {problem}");
    }
    Some(why)
}

fn is_tls(secret: &ThinSecret) -> bool {
    secret.kind == cert_renew_core::secret::data::data_keys::TLS_TYPE
}

/// Why it is not written, whatever it asks for.
fn left_alone(head: &Head) -> Option<String> {
    let (never, problem) = assess::left_alone(head)?;
    let why = Why::Never(never).in_words();
    Some(format!("{why}: {}", problem.expected))
}

/// That nothing declares it any more, which the Secret says itself.
fn undeclared(head: &Head) -> Option<String> {
    let key = SecretRef::new(head.namespace(), head.name());
    let is = declared::is_undeclared(&key, head);
    is.then(|| Why::Never(Never::Undeclared).in_words().into())
}

fn not_annotated(secret: &ThinSecret, defaults_are_known: bool) -> String {
    let issuer = keys::ISSUER;
    let default = if defaults_are_known {
        ", and its namespace has no default issuer"
    } else {
        ""
    };
    let label = if is_tls(secret) {
        String::new()
    } else {
        format!(
            "; a Secret of another type than kubernetes.io/tls needs the label {}: \"true\" too",
            keys::MANAGED_LABEL
        )
    };
    format!("cert-renew does not manage it: it has no annotation {issuer}{default}{label}")
}

fn of_never(never: Never, assessment: &Assessment) -> String {
    match never {
        Never::NoNames => format!(
            "nobody knows which names to ask for: it holds no certificate that has any, so write {}",
            keys::NAMES
        ),
        Never::UnknownIssuer => format!(
            "the config has no issuer {}",
            assess::issuer_name(&assessment.settings.issuer)
        ),
        never => Why::Never(never).in_words().into(),
    }
}

/// The hold that would stop the renewal, and its end.
fn held(
    now: UnixTime,
    assessment: &Assessment,
    wish: Wish<'_>,
    account: &IssuanceHistory,
) -> Option<(UnixTime, String)> {
    let reason = match assessment.renewal {
        // Another cause comes before the wish.
        Ok(due)
            if due.at <= now
                && !due.reason.is_scheduled()
                && due.reason != Reason::OutputsChanged =>
        {
            due.reason
        }
        _ => Reason::RenewNow,
    };
    let own = assessment.claim(reason);
    // A new value takes the place of an earlier one, which may have forced a renewal.
    let caused = match wish.value {
        Some(_) => assessment.has_moved(),
        None => own.caused,
    };
    let claim = Claim {
        wish: wish.value.map(hash).or(own.wish),
        caused: caused || wish.force || wish.is_broken,
        ..own
    };
    let hold = claim.hold(now, account)?;
    let window = duration::human(account.window());
    let until = hold.until();
    let why = match hold {
        Hold::TooYoung { .. } => {
            let lifetime = assessment.leaf.as_ref().map_or_else(
                |_| String::new(),
                |leaf| format!(" of {}", duration::human(leaf.lifetime())),
            );
            format!(
                "its certificate is younger than a tenth of its lifetime{lifetime}; from {until} on a new one can be asked \
                 for. --force asks now, and counts against the {} certificates within {window} that CAs allow",
                rate_limits::ISSUES_A_WEEK
            )
        }
        Hold::BackOff { .. } => {
            format!("its last renewals failed or the CA has limited it; the next try is at {until}")
        }
        Hold::TooMany { .. } => format!(
            "{} certificates for its names were issued within {window}, as many as CAs allow; the next one can be asked \
             for from {until} on",
            rate_limits::ISSUES_A_WEEK
        ),
        Hold::KeepsComingBack { .. } | Hold::WantedBack { .. } => format!(
            "{} certificates for its names were issued within {window} although none was due; the next one can be asked \
             for from {until} on",
            rate_limits::UNSCHEDULED_A_WEEK
        ),
    };
    Some((until, why))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cert_renew_core::schedule::rate_limits::TriedWith;
    use serde_json::json;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn config(more: &str) -> Config {
        let text = format!(
            "issuers: {{le: {{directory: \"https://ca.example/\", allow: [{{namespaces: [shop], names: [\"**.example\"]}}, \
             {{namespaceSelector: {{matchLabels: {{team: web}}}}, names: [\"**.labelled\"]}}]}}}}\n{more}"
        );
        Config::parse(&text).unwrap()
    }

    /// A Secret of `shop` with the certificate of a file, and when that begins to be valid.
    fn secret(kind: &str, annotations: &[(&str, &str)]) -> (ThinSecret, UnixTime, Duration) {
        use base64::Engine as _;
        let pem = include_bytes!("../../../../testdata/certificates/good.pem");
        let leaf = cert_renew_core::certificate::leaf(pem).unwrap();
        let annotations = annotations.iter().map(|(key, value)| {
            let key = format!("{}{key}", keys::PREFIX);
            (key, (*value).into())
        });
        let annotations: serde_json::Map<String, serde_json::Value> = annotations.collect();
        let data = base64::engine::general_purpose::STANDARD.encode(pem);
        let owners = match kind {
            "owned" => {
                json!([{"apiVersion": "cert-manager.io/v1", "kind": "Certificate", "name": "shop"}])
            }
            _ => json!([]),
        };
        let immutable = kind == "immutable";
        let kind = if kind == "Opaque" {
            kind
        } else {
            "kubernetes.io/tls"
        };
        let json = json!({"metadata": {"namespace": "shop", "name": "tls", "uid": "1", "annotations": annotations,
            "ownerReferences": owners}, "immutable": immutable, "type": kind, "data": {"tls.crt": data}});
        let secret = serde_json::from_value(json).unwrap();
        (secret, leaf.not_before, leaf.lifetime())
    }

    fn judge(
        at: UnixTime,
        secret: &ThinSecret,
        force: bool,
        config: Option<&Config>,
        account: Option<&IssuanceHistory>,
    ) -> Verdict {
        let none = std::collections::BTreeMap::new();
        let wish = Wish {
            value: Some("now"),
            force,
            is_broken: false,
        };
        let view = (config, Labels::Are(&none));
        verdict(at, secret, wish, view, |_| account.cloned())
    }

    #[test]
    fn what_nothing_declares_any_more_is_not_asked_for_whatever_is_known() {
        let key = SecretRef::new("shop", "tls");
        let record = declared::Record {
            gone: Some(UnixTime(1_800_000_000)),
            ..declared::Record::default()
        };
        let (secret, from, lifetime) = secret("kubernetes.io/tls", &[]);
        let annotations = [
            (keys::ISSUER, "le".to_owned()),
            (keys::NAMES, "shop.example".to_owned()),
            (keys::DECLARED, "true".to_owned()),
            (keys::DECLARATION, record.written_for(&key)),
        ];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value));
        let secret = secret.annotated(annotations.into());
        let known = config("class: default");
        for config in [None, Some(&known)] {
            let verdict = judge(from + lifetime / 2, &secret, true, config, None);
            let why = "what declared the certificate is gone";
            assert_eq!(verdict, Verdict::Nothing(why.into()), "{config:?}");
        }
    }

    #[test]
    fn nothing_is_asked_where_nothing_would_happen() {
        let tls = "kubernetes.io/tls";
        let ours = ("issuer", "le");
        for (kind, annotations, more, expected) in [
            (tls, vec![], "", "no annotation cert-renew.io/issuer"),
            ("Opaque", vec![], "", "the label cert-renew.io/managed"),
            (tls, vec![("issuer", "external")], "", "somebody else"),
            (tls, vec![ours, ("paused", "true")], "", "it is paused"),
            (
                tls,
                vec![ours],
                "paused: true",
                "the config has paused: true",
            ),
            (
                tls,
                vec![ours, ("class", "edge")],
                "",
                "another installation",
            ),
            (tls, vec![ours, ("key-type", "dsa")], "", "key-type"),
            (
                tls,
                vec![("issuer", "nosuch")],
                "",
                "an issuer of the config (le)",
            ),
            (tls, vec![ours, ("names", "a.test")], "", "issuers.le.allow"),
            // Granted by the labels of the namespace, which has none.
            (
                tls,
                vec![ours, ("names", "a.labelled")],
                "",
                "issuers.le.allow",
            ),
            ("Opaque", vec![ours], "", "it is of type \"Opaque\""),
            (
                tls,
                vec![ours],
                "watch: {select: label}",
                "watch.select: label",
            ),
            (
                tls,
                vec![ours],
                "watch: {namespaces: [blog]}",
                "does not watch namespace shop",
            ),
            ("owned", vec![ours], "", "Certificate shop owns it"),
            ("immutable", vec![ours], "", "the Secret is immutable"),
        ] {
            let (secret, since, lifetime) = secret(kind, &annotations);
            let at = since + lifetime / 2;
            let config = config(more);
            let said = judge(
                at,
                &secret,
                false,
                Some(&config),
                Some(&IssuanceHistory::default()),
            );
            let Some(why) = said.refusal() else {
                panic!("{annotations:?} {more}: {said:?}");
            };
            assert!(why.contains(expected), "{annotations:?}: {why}");
        }
    }

    #[test]
    fn a_young_certificate_is_kept_unless_it_is_forced() {
        let config = config("");
        let names = ("names", "a.example");
        let (secret, since, lifetime) = secret("kubernetes.io/tls", &[("issuer", "le"), names]);
        // Another name is a cause of its own, which the rule does not hold.
        let account = IssuanceHistory::default();
        let young = since + lifetime / 20;
        let said = judge(young, &secret, false, Some(&config), Some(&account));
        assert_eq!(said, Verdict::Renews);

        let (secret, ..) = self::secret("kubernetes.io/tls", &[("issuer", "le")]);
        let config = Config::parse(
            "issuers: {le: {directory: \"https://ca.example/\", allow: [{namespaces: [shop], names: [\"**.example\", \
             \"**.example.com\", \"example.com\", \"0.0.0.0/0\", \"::/0\"]}]}}",
        )
        .unwrap();
        let said = judge(young, &secret, false, Some(&config), Some(&account));
        let until = since + lifetime / 10;
        let Verdict::NotBefore(at, why) = &said else {
            panic!("{said:?}");
        };
        assert_eq!(*at, until);
        for part in [&until.to_string(), "--force", "tenth"] {
            assert!(why.contains(part), "{part}: {why}");
        }
        for (at, force) in [(young, true), (until, false)] {
            let said = judge(at, &secret, force, Some(&config), Some(&account));
            assert_eq!(said, Verdict::Renews, "{at} {force}");
        }
        // An earlier value is replaced, whether it was served or not.
        let forced = ("renew-now", "force-2026-01-01T00:00:00Z");
        let (secret, ..) = self::secret("kubernetes.io/tls", &[("issuer", "le"), forced]);
        let said_of_forced = judge(young, &secret, false, Some(&config), Some(&account));
        assert_eq!(said_of_forced, said);
    }

    #[test]
    fn a_spent_budget_is_told_and_force_does_not_pass_it() {
        let config = config("");
        let annotations = [("issuer", "le"), ("names", "a.example")];
        let (secret, since, lifetime) = secret("kubernetes.io/tls", &annotations);
        let at = since + lifetime / 2;
        let issues = (1..=4).map(|days| (at - DAY * days).0).rev();
        let account = IssuanceHistory {
            unscheduled: issues.collect(),
            ..IssuanceHistory::default()
        };
        for force in [false, true] {
            let said = judge(at, &secret, force, Some(&config), Some(&account));
            let Verdict::NotBefore(until, why) = &said else {
                panic!("{said:?}");
            };
            let free = at - DAY * 4 + DAY * 7;
            assert_eq!(*until, free);
            assert!(why.contains(&free.to_string()), "{why}");
        }
    }

    /// What asks for it without a value of `renew-now`, such as `revoked`, forgets no back-off.
    #[test]
    fn without_a_wish_a_back_off_holds_until_its_end() {
        let config = config("");
        let annotations = [("issuer", "le"), ("names", "a.example")];
        let (secret, since, lifetime) = secret("kubernetes.io/tls", &annotations);
        let (at, key) = (since + lifetime / 2, SecretRef::new("shop", "tls"));
        let until = at + DAY;
        let tried = |settings| TriedWith {
            config: 1,
            subject: hash(&key.to_string()),
            settings,
        };
        let own = secret.head.digest();
        for (value, tried_with, expected) in [
            (None, None, Some(until)),
            (None, Some(tried(own)), Some(until)),
            // The operator tries other settings at once.
            (None, Some(tried(own + 1)), None),
            (Some("now"), Some(tried(own)), None),
        ] {
            let account = IssuanceHistory {
                retry_at: Some(until.0),
                tried_with,
                ..IssuanceHistory::default()
            };
            let wish = Wish {
                value,
                force: true,
                is_broken: false,
            };
            let none = std::collections::BTreeMap::new();
            let view = (Some(&config), Labels::Are(&none));
            let said = match verdict(at, &secret, wish, view, |_| Some(account.clone())) {
                Verdict::NotBefore(until, _) => Some(until),
                Verdict::Renews => None,
                other => panic!("{other:?}"),
            };
            assert_eq!(said, expected, "{value:?} {tried_with:?}");
        }
    }

    /// A misread annotation holds a renewal up as long as enough life is left.
    #[test]
    fn what_is_held_up_is_renewed_when_little_life_is_left() {
        let misread = [
            ("issuer", "le"),
            ("names", "a.example"),
            ("key-type", "dsa"),
        ];
        let (secret, since, lifetime) = secret("kubernetes.io/tls", &misread);
        let at = since + lifetime / 2;
        let account = IssuanceHistory::default();
        let said = judge(at, &secret, true, Some(&config("")), Some(&account));
        let Verdict::NotBefore(until, why) = said else {
            panic!("{said:?}");
        };
        assert!(until > at && until < since + lifetime, "{until}");
        assert!(why.contains("key-type"), "{why}");
    }

    #[test]
    fn what_cannot_be_read_is_said_and_stops_nothing() {
        let annotations = [("issuer", "le"), ("names", "a.example")];
        let (secret, since, lifetime) = secret("kubernetes.io/tls", &annotations);
        let at = since + lifetime / 2;
        let config = config("");
        let said = judge(at, &secret, false, Some(&config), None);
        assert_eq!(said, Verdict::Unknown("its failure history"));
        let said = judge(at, &secret, false, None, None);
        assert_eq!(said, Verdict::Unknown("its config"));
        let (external, ..) = self::secret("kubernetes.io/tls", &[("issuer", "external")]);
        let said = judge(at, &external, false, None, None);
        assert!(matches!(said, Verdict::Nothing(_)), "{said:?}");
    }
}
