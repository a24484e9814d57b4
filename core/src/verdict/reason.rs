//! Why a Secret is in its state, in a sentence, and the next thing to do, as a command.

use super::{State, Why, held, renew_at, unrolled};
use crate::assess::OTHER_WRITER;
use crate::index::{Entry, Stuck};
use crate::schedule::due::Never;
use crate::secret::SecretRef;
use crate::secret::declared::{DeclaredBy, INGRESS};
use crate::secret::keys;
use crate::secret::object::keepers::CERTIFICATE_NAME;
use crate::secret::settings::Blocks;
use crate::secret::used_by::{Has, UsedBy};
use crate::time::UnixTime;

/// The namespace in which commands look for the operator where they are told of no other.
pub const NAMESPACE: &str = "cert-renew";
/// What a command has in place of the operator's namespace where that is not known.
const PLACEHOLDER: &str = "kubectl -n OPERATOR-NAMESPACE ";

/// A command for an operator in this namespace.
#[must_use]
pub fn for_operator_in(namespace: &str, command: &str) -> String {
    if let Some(rest) = command.strip_prefix(PLACEHOLDER) {
        return format!("kubectl -n {namespace} {rest}");
    }
    if namespace == NAMESPACE || !command.starts_with("cert-renew ") {
        return command.to_owned();
    }
    format!("{command} --operator-namespace {namespace}")
}

/// Why it is in that state.
pub(super) fn reason(entry: &Entry, state: State, now: UnixTime) -> String {
    let ends = entry
        .observed
        .leaf
        .map_or(UnixTime(0), |leaf| leaf.not_after);
    let renewal = || renewal(entry, now);
    match state {
        State::Expired => format!("the certificate expired at {ends}; {}", renewal()),
        State::RenewalFailing => match entry.stuck {
            Some(Stuck::Paused) => "the CA has paused these names for our account".into(),
            Some(Stuck::OtherOwner) => {
                "another program writes the Secret, or it cannot be written".into()
            }
            None => "a new certificate is due, and the last try failed".into(),
        },
        State::Absent => format!("the Secret holds no certificate; {}", renewal()),
        State::Unreadable => format!("what the Secret holds is no certificate; {}", renewal()),
        State::PairBroken => format!("no server can load its key and certificate; {}", renewal()),
        State::Expiring => format!("it ends at {ends}, and {}", renewal()),
        State::RolloutFailing if entry.observed.halted => {
            "its rollout is halted: a workload did not take the new certificate up, the others keep the former one".into()
        }
        State::RolloutFailing => {
            "not all of its workloads have the certificate, and the last try to bring it to them failed".into()
        }
        State::Blocked => blocked(entry, now),
        State::Held => held::while_young(entry.held_until(now).unwrap_or(now)),
        State::Due => format!("a new certificate is due; {}", renewal()),
        State::Paused if entry.observed.renewal == Err(Never::External) => {
            format!("no workload is restarted while it is paused; {}", renewal())
        }
        State::Paused => format!("nothing is changed: {}", renewal()),
        State::Ok => healthy(entry, now),
    }
}

/// Whether and when it is renewed.
fn renewal(entry: &Entry, now: UnixTime) -> String {
    match entry.observed.due() {
        Err(never) => Why::Never(never).in_words().into(),
        Ok(_) if entry.renewing.is_some() => "a renewal is under way".into(),
        Ok(_) if entry.order_open => "an order is open at the CA".into(),
        Ok(_) if entry.renewal_error.is_some() => "the last try to renew it failed".into(),
        Ok(due) => match renew_at(entry) {
            Some(opens) if opens > now && due.at <= now => held::while_shut(opens),
            Some(at) if at > now => format!("it is renewed at {at}"),
            _ => "it waits for its turn".into(),
        },
    }
}

fn blocked(entry: &Entry, now: UnixTime) -> String {
    let seen = &entry.observed;
    let rollouts = "an annotation is invalid: its rollouts wait until that is fixed";
    match (seen.due(), seen.blocked) {
        (Err(Never::External), Blocks::Rollout | Blocks::Both) | (Ok(_), Blocks::Rollout) => {
            rollouts.into()
        }
        (Err(never), blocked) => {
            let never = format!("it is never renewed: {}", Why::Never(never).in_words());
            match blocked.rollout() {
                true => format!("{never}; and {rollouts}"),
                false => never,
            }
        }
        (Ok(_), _) => match renew_at(entry) {
            Some(at) if at > now => held::while_misread(at),
            _ => {
                "an annotation is invalid: it is renewed now only since little life is left".into()
            }
        },
    }
}

fn healthy(entry: &Entry, now: UnixTime) -> String {
    let rollout = match (unrolled(entry), entry.observed.window) {
        (true, Some(opens)) if opens > now => {
            format!("; its workloads get the new one when the change window opens, at {opens}")
        }
        (true, _) => "; its workloads get the new one now".into(),
        (false, _) => String::new(),
    };
    let renewal = match entry.observed.renewal {
        Err(never) => format!("valid; {}", Why::Never(never).in_words()),
        Ok(_) => "valid, and renewed when it is due".to_owned(),
    };
    format!("{renewal}{rollout}")
}

/// Whether an object, as kubectl takes it, is an Ingress.
fn is_ingress(object: &str) -> bool {
    let kind = object.split_once('/').map(|(kind, _)| kind);
    kind == Some(INGRESS)
}

/// Commands about one Secret.
#[derive(Clone, Copy)]
pub(super) struct Commands<'a> {
    pub(super) key: &'a SecretRef,
    /// What declares it: what is changed on the Secret itself is put back then.
    pub(super) declared: Option<&'a DeclaredBy>,
}

impl Commands<'_> {
    /// Changes an annotation of the Secret itself.
    fn annotate(self, change: &str) -> String {
        let SecretRef { namespace, name } = self.key;
        format!("kubectl -n {namespace} annotate secret {name} --overwrite {change}")
    }

    /// Changes a setting where it comes from; shows the objects where several declare the Secret.
    fn set(self, change: &str) -> String {
        let namespace = &self.key.namespace;
        match self.declared.map(|it| &*it.objects) {
            None | Some([]) => self.annotate(change),
            // Its names are hosts of its TLS entries.
            Some([object]) if change.starts_with(keys::NAMES) && is_ingress(object) => {
                format!("kubectl -n {namespace} edit {object}")
            }
            Some([object]) => {
                format!("kubectl -n {namespace} annotate {object} --overwrite {change}")
            }
            Some(objects) => format!("kubectl -n {namespace} get {} -o yaml", objects.join(" ")),
        }
    }

    /// Gives an annotation another value, or takes away one that is no setting: what declares a Secret gives it none.
    fn mend(self, key: &str) -> String {
        match keys::SETTINGS.contains(&key) {
            true => self.set(&format!("{key}=VALUE")),
            false => self.annotate(&format!("{key}-")),
        }
    }

    /// Takes away the annotation that pauses it.
    fn end_pause(self) -> String {
        let change = format!("{}-", keys::PAUSED);
        match self.declared.is_some_and(|it| it.pauses) {
            true => self.set(&change),
            false => self.annotate(&change),
        }
    }

    /// The next thing to do; none where nothing is to do, or only to wait.
    pub(super) fn next(
        self,
        entry: &Entry,
        state: State,
        problems: &[Box<str>],
        used_by: Option<&UsedBy>,
    ) -> Option<String> {
        let SecretRef { namespace, name } = self.key;
        let events = || format!("kubectl -n {namespace} events --for secret/{name}");
        let writers = || {
            format!(
                "kubectl -n {namespace} get secret {name} -o jsonpath='{{.metadata.managedFields[*].manager}}'"
            )
        };
        // Where it is the annotation that says so, it is to go once the Certificate has gone.
        let says_cert_manager = || {
            let mut owned = problems.iter().filter(|it| it.starts_with(OTHER_WRITER));
            owned.any(|it| it.contains(CERTIFICATE_NAME))
        };
        let by_renewal = || match entry.observed.renewal {
            Err(Never::NotAnnotated) => Some(self.annotate(&format!("{}=ISSUER", keys::ISSUER))),
            // What renews it is to be asked: an issuer here would take the certificate from its owner.
            Err(Never::OwnedByAnother) if says_cert_manager() => {
                Some(self.annotate(&format!("{CERTIFICATE_NAME}-")))
            }
            Err(Never::External | Never::OwnedByAnother) => Some(writers()),
            Err(Never::Paused) => Some(self.end_pause()),
            Err(Never::AllPaused) => Some(edit_config()),
            Err(Never::UnknownIssuer) => Some(self.set(&format!("{}=ISSUER", keys::ISSUER))),
            Err(Never::NoNames | Never::NotAllowed) => {
                Some(self.set(&format!("{}=NAMES", keys::NAMES)))
            }
            Err(Never::Undeclared) => Some(self.annotate(&format!("{}-", keys::DECLARED))),
            Err(Never::Immutable) => Some(format!(
                "kubectl -n {namespace} get secret {name} -o yaml | sed '/^immutable: true$/d' | kubectl replace --force -f -"
            )),
            Ok(_) => None,
        };
        match state {
            State::RenewalFailing | State::Expired if entry.renewal_error.is_some() => {
                Some(match entry.stuck {
                    Some(Stuck::OtherOwner) => writers(),
                    Some(Stuck::Paused) => events(),
                    // By the labels of the namespace, of which only the renewal knows.
                    None if is_refusal(entry) => format!("cert-renew names -n {namespace}"),
                    None => format!("cert-renew plan --preflight -n {namespace}"),
                })
            }
            State::RolloutFailing if entry.observed.halted => {
                Some(format!("cert-renew resume {namespace}/{name}"))
            }
            State::RolloutFailing => {
                let workloads = used_by.into_iter().flat_map(|it| &it.workloads);
                let mut unwell = workloads.filter(|(_, has)| *has != Has::It);
                let unwell = unwell.next().map(|(workload, _)| workload);
                Some(
                    unwell
                        .map_or_else(events, |it| format!("kubectl -n {namespace} describe {it}")),
                )
            }
            State::PairBroken if entry.observed.renewal.is_ok() => {
                Some(format!("cert-renew renew {namespace}/{name}"))
            }
            State::Blocked if entry.observed.renewal.is_err() => by_renewal(),
            State::Held => Some(format!("cert-renew renew {namespace}/{name} --force")),
            // Another program renews it: the pause holds up its rollouts.
            State::Paused if entry.observed.renewal == Err(Never::External) => {
                Some(match entry.observed.pauses_itself {
                    true => self.end_pause(),
                    false => edit_config(),
                })
            }
            State::Ok | State::Due | State::Blocked => {
                let keys = problems.iter().filter_map(|text| annotation_of(text));
                keys.map(|key| self.mend(key)).next()
            }
            _ => by_renewal(),
        }
    }
}

/// Ends what the config does to all Secrets.
fn edit_config() -> String {
    format!("{PLACEHOLDER}edit configmap cert-renew-config")
}

/// Whether the last renewal failed because names are not granted.
fn is_refusal(entry: &Entry) -> bool {
    let error = entry.renewal_error.as_deref();
    error.and_then(annotation_of) == Some(keys::NAMES)
}

/// The annotation that a problem's text is about.
fn annotation_of(problem: &str) -> Option<&str> {
    let (key, _) = problem.split_once(": ")?;
    key.starts_with(keys::PREFIX).then_some(key)
}
