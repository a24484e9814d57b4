//! What the declarations of a Secret ask for together, and the one write on the Secret that follows.

use std::collections::{BTreeMap, BTreeSet};

use super::{Brief, Declaration, MOST_OF_SECRET, Source, digest};
use crate::assess::{self, Assessment};
use crate::config::Config;
use crate::schedule::due::Never;
use crate::secret::SecretRef;
use crate::secret::annotations::MAX_ITEMS;
use crate::secret::data::data_keys::TLS_TYPE;
use crate::secret::declared::{DeclaredMark, is_asked_once, is_marked};
use crate::secret::keys;
use crate::secret::object::thin::ThinSecret;
use crate::secret::settings::{NamespaceDefaults, Settings};
use crate::text::hash::hash;
use crate::text::shown;
use crate::time::UnixTime;

/// What all declarations of a Secret ask for together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The settings, by annotation, with those that cert-renew does not know.
    pub settings: BTreeMap<String, String>,
    /// The objects, the oldest first.
    pub by: Vec<Source>,
    /// What one of them says in vain: a setting that an older one has in another form, or that nobody knows. At most
    /// [`MOST_TOLD`] of each.
    conflicts: BTreeMap<Source, Vec<String>>,
    /// What younger objects say in vain because of a route. At most [`MOST_TOLD`] of each.
    contested: BTreeMap<Source, Vec<String>>,
    /// Digest of all of it.
    pub of: u64,
}

impl Wanted {
    /// Puts declarations together: the names of all of them, and of any other setting that of the oldest that has it.
    /// `None` if there are none that can be followed.
    #[must_use]
    pub fn of(key: &SecretRef, declarations: &[Declaration]) -> Option<Self> {
        let mut all: Vec<(Brief, &Declaration)> =
            declarations.iter().map(|it| (it.brief(), it)).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        let of = digest(key, all.iter().map(|(brief, _)| brief));
        all.truncate(MOST_OF_SECRET);
        all.retain(|(_, it)| it.fault.is_none());
        if all.is_empty() {
            return None;
        }
        let (mut settings, mut conflicts) = (BTreeMap::<String, String>::new(), BTreeMap::new());
        let mut contested = BTreeMap::<Source, Vec<String>>::new();
        // Where each setting comes from.
        let mut from = BTreeMap::<&str, &Source>::new();
        let mut names = Vec::new();
        for (_, declaration) in &all {
            let remarks = declaration.remarks.iter().cloned();
            let mut in_vain: Vec<String> = remarks
                .chain(unknown(&declaration.settings))
                .take(MOST_TOLD / 2)
                .collect();
            for (setting, value) in &declaration.settings {
                if setting == keys::NAMES {
                    names.push(value.as_str());
                    continue;
                }
                match settings.get(setting) {
                    Some(older)
                        if older != value && is_setting(setting) && in_vain.len() < MOST_TOLD =>
                    {
                        let (older, value) = (shown(older), shown(value));
                        let text = format!(
                            "{setting}: {value}: an older object declares the same Secret with {older}, which counts"
                        );
                        in_vain.push(text);
                        let older_one = from.get(setting.as_str()).filter(|it| it.kind.is_route());
                        if let Some(older_one) = older_one {
                            let told = contested.entry((*older_one).clone()).or_default();
                            let source = &declaration.source;
                            let text = format!(
                                "{setting}: {older}: it counts, and {source}, which is younger, declares the same Secret with {value}"
                            );
                            told.extend((told.len() < MOST_TOLD).then_some(text));
                        }
                    }
                    Some(_) => {}
                    None => {
                        settings.insert(setting.clone(), value.clone());
                        from.insert(setting, &declaration.source);
                    }
                }
            }
            if !in_vain.is_empty() {
                conflicts.insert(declaration.source.clone(), in_vain);
            }
        }
        let joined = match *names {
            [] => None,
            [one] => Some(one.to_owned()),
            _ => Some(union(&names)),
        };
        settings.extend(joined.map(|names| (keys::NAMES.to_owned(), names)));
        Some(Self {
            settings,
            by: all.iter().map(|(_, it)| it.source.clone()).collect(),
            conflicts,
            contested,
            of,
        })
    }

    /// What this object says in vain, a text each.
    #[must_use]
    pub fn in_vain(&self, of: &Source) -> &[String] {
        self.conflicts.get(of).map_or(&[], Vec::as_slice)
    }

    /// What younger objects say in vain because of this one, if it is a route, a text each.
    #[must_use]
    pub fn contested(&self, of: &Source) -> &[String] {
        self.contested.get(of).map_or(&[], Vec::as_slice)
    }

    /// How another Secret is named.
    fn another(&self) -> String {
        match self.by.iter().any(|it| it.kind.is_route()) {
            true => "name another in spec.tls".to_owned(),
            false => format!("name another by {}", keys::SECRET),
        }
    }

    /// The settings that go onto the Secret.
    fn given(&self) -> impl Iterator<Item = (&String, &String)> {
        let settings = self.settings.iter();
        settings.filter(|(key, _)| is_setting(key))
    }

    fn record(&self) -> DeclaredMark {
        DeclaredMark {
            by: self.by.iter().map(ToString::to_string).collect(),
            of: self.of,
            given: self
                .given()
                .map(|(key, value)| (key.clone(), hash(value)))
                .collect(),
            gone: None,
        }
    }
}

pub(super) fn is_setting(key: &str) -> bool {
    key.strip_prefix(keys::PREFIX).is_some_and(keys::is_setting)
}

/// Most texts about one declaration.
const MOST_TOLD: usize = 20;

/// What is to be told of annotations that are no settings: they do not get onto the Secret, where they would be told.
fn unknown(settings: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    let (_, problems) = Settings::read(settings, false, &NamespaceDefaults::default());
    let unknown = problems.into_iter().filter(|it| !is_setting(&it.key));
    unknown.map(|it| it.to_string())
}

/// The names of several declarations, each once, in the order in which they come. Of more than a Secret may have, only the
/// first that are too many: that is refused.
fn union(lists: &[&str]) -> String {
    let mut seen = BTreeSet::new();
    let items = lists.iter().flat_map(|list| list.split([',', '\n']));
    let items = items.map(str::trim).filter(|item| !item.is_empty());
    let once: Vec<&str> = items
        .filter(|item| seen.insert(item.to_ascii_lowercase()))
        .take(MAX_ITEMS + 1)
        .collect();
    once.join(", ")
}

/// What is to be done about a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is as it should be.
    Nothing,
    /// It does not exist and is made, empty, with these annotations.
    Make(BTreeMap<String, String>),
    /// These annotations are changed.
    Change(Vec<(String, Option<String>)>),
    /// It is left as it is, for this reason.
    Refuse(String),
}

/// Decides about a Secret as it was read a moment ago.
#[must_use]
pub fn decide(
    now: UnixTime,
    key: &SecretRef,
    wanted: &Wanted,
    secret: Option<&ThinSecret>,
    config: &Config,
) -> Decision {
    if config.paused {
        return Decision::Nothing;
    }
    let Some(secret) = secret else {
        let would_be = ThinSecret::empty(key, wanted.settings.clone());
        return match fault(now, key, &would_be, config) {
            Err(why) => Decision::Refuse(why),
            Ok(assessment) => match assessment.renewal {
                Err(Never::External) => Decision::Refuse(format!(
                    "{}: external: somebody else has to make the Secret then",
                    keys::ISSUER
                )),
                Err(Never::Paused) => Decision::Refuse(format!(
                    "{} is set: the Secret is made when that is gone",
                    keys::PAUSED
                )),
                _ => Decision::Make(new_annotations(key, wanted)),
            },
        };
    };
    if let Some(why) = not_ours(key, wanted, secret) {
        return Decision::Refuse(why);
    }
    let changes = changes(key, wanted, secret);
    if changes.is_empty() {
        return Decision::Nothing;
    }
    let mut annotations = secret.head.annotations().cloned().unwrap_or_default();
    annotations.extend(wanted.settings.clone());
    for (key, value) in &changes {
        match value {
            Some(value) => _ = annotations.insert(key.clone(), value.clone()),
            None => _ = annotations.remove(key),
        }
    }
    match fault(now, key, &secret.clone().annotated(annotations), config) {
        Err(why) => Decision::Refuse(format!("the Secret keeps its settings: {why}")),
        Ok(_) => Decision::Change(changes),
    }
}

/// What is to be changed about a Secret that nothing declares any more: it stays, and is not renewed.
#[must_use]
pub fn undeclare(now: UnixTime, key: &SecretRef, secret: &ThinSecret) -> Decision {
    let head = &secret.head;
    match DeclaredMark::read(key, head) {
        Some(record) if is_marked(head) && record.gone.is_none() && !head.deleting => {
            let gone = DeclaredMark {
                gone: Some(now),
                ..record
            };
            let written = gone.written_for(key);
            Decision::Change(vec![(keys::DECLARATION.to_owned(), Some(written))])
        }
        _ => Decision::Nothing,
    }
}

/// The objects that a Secret says it is declared by.
#[must_use]
pub fn recorded(key: &SecretRef, secret: &ThinSecret) -> Vec<Source> {
    let record = DeclaredMark::read(key, &secret.head);
    let by = record.into_iter().flat_map(|it| it.by);
    by.filter_map(|text| Source::read(&text))
        .take(MOST_OF_SECRET)
        .collect()
}

fn new_annotations(key: &SecretRef, wanted: &Wanted) -> BTreeMap<String, String> {
    let given = wanted
        .given()
        .map(|(key, value)| (key.clone(), value.clone()));
    let ours = [
        (keys::DECLARED.to_owned(), "true".to_owned()),
        (
            keys::DECLARATION.to_owned(),
            wanted.record().written_for(key),
        ),
    ];
    given.chain(ours).collect()
}

/// Why a Secret that exists is not ours to keep, and what to do about it.
fn not_ours(key: &SecretRef, wanted: &Wanted, secret: &ThinSecret) -> Option<String> {
    let SecretRef { namespace, name } = key;
    let head = &secret.head;
    if head.deleting {
        return Some("the Secret is being deleted: it is made again when it is gone".into());
    }
    if secret.kind != TLS_TYPE {
        let kind = shown(&secret.kind);
        return Some(format!(
            "Secret {name} exists, and is of the type {kind}: only one of type {TLS_TYPE} can be declared; {}",
            wanted.another()
        ));
    }
    if let Some(keeper) = &head.keeper {
        let keeper = shown(&keeper.to_string());
        return Some(format!(
            "Secret {name} exists, and {keeper} writes it: end that first, or {}",
            wanted.another()
        ));
    }
    (!is_marked(head)).then(|| {
        format!(
            "Secret {name} exists, and was not made for this: it is left alone. To hand it over, with the certificate that it \
             holds: kubectl -n {namespace} annotate secret {name} {}=true",
            keys::DECLARED
        )
    })
}

fn changes(key: &SecretRef, wanted: &Wanted, secret: &ThinSecret) -> Vec<(String, Option<String>)> {
    let head = &secret.head;
    let before = DeclaredMark::read(key, head).unwrap_or_default();
    let record = wanted.record();
    let mut changes = Vec::new();
    for (setting, value) in wanted.given() {
        let is_as_given = before.given.get(setting) == record.given.get(setting);
        let is_there = head.annotation(setting) == Some(value);
        // The same was asked for before, and something else since, on the Secret itself.
        let is_served = is_as_given && is_asked_once(setting) && head.annotation(setting).is_some();
        if !is_there && !is_served {
            changes.push((setting.clone(), Some(value.clone())));
        }
    }
    for (setting, given) in &before.given {
        let is_as_given = head.annotation(setting).map(hash) == Some(*given);
        let is_wanted = record.given.contains_key(setting);
        let is_there = head.annotation(setting).is_some();
        if !is_wanted && is_there && (is_as_given || !is_asked_once(setting)) {
            changes.push((setting.clone(), None));
        }
    }
    if before != record {
        changes.push((keys::DECLARATION.to_owned(), Some(record.written_for(key))));
    }
    changes
}

/// How the Secret would be judged, or why it could not be renewed by these settings.
fn fault(
    now: UnixTime,
    key: &SecretRef,
    would_be: &ThinSecret,
    config: &Config,
) -> Result<Assessment, String> {
    let Some(assessment) = assess::of_thin(now, key, would_be, config) else {
        return Err(format!(
            "there is no annotation {}, and the namespace has no default issuer",
            keys::ISSUER
        ));
    };
    match assessment.problems.iter().find(|it| it.blocks.issue()) {
        Some(problem) => Err(problem.to_string()),
        None => Ok(assessment),
    }
}
