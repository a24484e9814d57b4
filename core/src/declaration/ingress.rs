//! Ingresses that ask for certificates: each Secret that a TLS entry of theirs names is declared, for the hosts of these
//! entries.
//!
//! Of an Ingress as the watch brings it, metadata and TLS entries are kept until it has been read, and of these no more
//! than could be had: anybody of a namespace may write thousands of hosts there. Decoding cannot fail (see
//! [`crate::secret::object::lenient`]).

use std::borrow::Cow;

use kube_core::{NamespaceResourceScope, ObjectMeta, Resource};
use serde::de::{DeserializeSeed as _, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer};

use super::object::Fields;
use super::{Declaration, Kind, hides_a_key, is_for, settings_of};
use crate::secret::annotations::MAX_ITEMS;
use crate::secret::declared::is_object_name;
use crate::secret::keys;
use crate::secret::object::lenient::{Fill, Shape};

/// Most Secrets that one Ingress declares, the first ones.
pub const MOST_SECRETS: usize = 100;
/// Most TLS entries that are read: several may name one Secret.
const MOST_ENTRIES: usize = 400;
/// Most bytes of its settings: each of its Secrets is declared with all of them.
const MOST_BYTES: usize = 16 * 1024;

/// An Ingress without its rules.
#[derive(Clone, Debug, Default)]
pub struct Ingress {
    /// Identity, age, and the annotations of a declaration; all other fields stay empty.
    pub metadata: ObjectMeta,
    tls: Vec<Entry>,
}

/// A TLS entry that names a Secret.
#[derive(Clone, Debug, Default)]
struct Entry {
    secret: Option<String>,
    hosts: Vec<String>,
}

impl Declaration {
    /// Reads an Ingress: what it declares for each Secret that its TLS entries name. Nothing, if it has no issuer, is
    /// about to go, or is for an installation of another class.
    #[must_use]
    pub fn of_ingress(ingress: &Ingress, class: &str) -> Vec<Self> {
        let metadata = &ingress.metadata;
        let (Some(name), Some(annotations)) = (&metadata.name, &metadata.annotations) else {
            return Vec::new();
        };
        let is_meant = annotations.contains_key(keys::ISSUER) && is_for(class, annotations);
        if !is_meant || metadata.deletion_timestamp.is_some() {
            return Vec::new();
        }
        // Names are those of the hosts, and Secrets those of the entries.
        let others = [keys::NAMES, keys::SECRET];
        let mut settings = settings_of(annotations, &others);
        let bytes: usize = { settings.iter() }
            .map(|(key, value)| key.len() + value.len())
            .sum();
        let too_long = || {
            let prefix = keys::PREFIX;
            let text = format!("the annotations under {prefix} have more than {MOST_BYTES} bytes");
            (bytes > MOST_BYTES).then_some(text)
        };
        let fault = hides_a_key(&settings).or_else(too_long);
        if fault.is_some() {
            settings.clear();
        }
        let in_vain = { others.iter() }.filter(|key| annotations.contains_key(**key));
        let mut remarks: Vec<String> = in_vain
            .map(|key| format!("{key}: not read on an Ingress, whose TLS entries say it"))
            .collect();
        let (secrets, is_all) = hosts_by_secret(&ingress.tls);
        if !is_all {
            remarks.push(format!(
                "spec.tls: it names more than {MOST_SECRETS} Secrets, or has more than {MOST_ENTRIES} entries: the last \
                 ones are left alone"
            ));
        }
        let declared = secrets.into_iter().map(|(secret, hosts)| {
            let mut settings = settings.clone();
            let none = hosts.is_empty().then(|| {
                format!("spec.tls: no entry of Secret {secret} has a host, so that there is no name to ask for")
            });
            if none.is_none() {
                settings.insert(keys::NAMES.to_owned(), hosts.join(", "));
            }
            Self {
                secret: secret.into(),
                settings,
                fault: fault.clone().or(none),
                remarks: remarks.clone(),
                ..Self::nothing(Kind::Ingress, name, metadata)
            }
        });
        declared.collect()
    }
}

/// The Secrets of some TLS entries, in their order, with their hosts, each once; and whether these are all of them. Of more
/// hosts than a certificate may have, only the first that are too many: that is refused.
fn hosts_by_secret(entries: &[Entry]) -> (Vec<(&str, Vec<&str>)>, bool) {
    let mut secrets: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut is_all = entries.len() <= MOST_ENTRIES;
    for Entry { secret, hosts } in entries.iter().take(MOST_ENTRIES) {
        let Some(secret) = secret.as_deref().filter(|it| is_object_name(it)) else {
            continue;
        };
        let known = secrets.iter().position(|(name, _)| *name == secret);
        let known = match known {
            Some(at) => at,
            None if secrets.len() < MOST_SECRETS => {
                secrets.push((secret, Vec::new()));
                secrets.len() - 1
            }
            None => {
                is_all = false;
                continue;
            }
        };
        let all = &mut secrets[known].1;
        for host in hosts.iter().map(|it| it.trim()).filter(|it| !it.is_empty()) {
            if all.len() <= MAX_ITEMS && !all.contains(&host) {
                all.push(host);
            }
        }
    }
    (secrets, is_all)
}

impl Resource for Ingress {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Kind::Ingress.as_str().into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "networking.k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "ingresses".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<'de> Deserialize<'de> for Ingress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Self::default();
        Fill(&mut object).deserialize(deserializer)?;
        Ok(object)
    }
}

impl Shape for Ingress {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "metadata" => map.next_value_seed(Fill(&mut Fields(&mut self.metadata))),
            "spec" => map.next_value_seed(Fill(&mut Spec(&mut self.tls))),
            _ => ().member(key, map),
        }
    }
}

struct Spec<'a>(&'a mut Vec<Entry>);

impl Shape for Spec<'_> {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "tls" => map.next_value_seed(Fill(&mut Entries(self.0))),
            _ => ().member(key, map),
        }
    }
}

/// One more than are read, to tell that there are more.
struct Entries<'a>(&'a mut Vec<Entry>);

impl Shape for Entries<'_> {
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<Option<()>, A::Error> {
        if self.0.len() > MOST_ENTRIES {
            return ().element(list);
        }
        let mut entry = Entry::default();
        let found = list.next_element_seed(Fill(&mut entry))?;
        // An entry without one uses a certificate that the controller has.
        if entry.secret.is_some() {
            self.0.push(entry);
        }
        Ok(found)
    }
}

impl Shape for Entry {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "secretName" => map.next_value_seed(Fill(&mut self.secret)),
            "hosts" => map.next_value_seed(Fill(&mut Hosts(&mut self.hosts))),
            _ => ().member(key, map),
        }
    }
}

/// One more than a certificate may have: that is refused.
struct Hosts<'a>(&'a mut Vec<String>);

impl Shape for Hosts<'_> {
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<Option<()>, A::Error> {
        if self.0.len() > MAX_ITEMS {
            return ().element(list);
        }
        let mut host: Option<String> = None;
        let found = list.next_element_seed(Fill(&mut host))?;
        self.0.extend(host);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn read(ingress: Value) -> Vec<Declaration> {
        Declaration::of_ingress(&from_value(ingress).unwrap(), "default")
    }

    fn ingress(annotations: Value, tls: Value) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations,
                "managedFields": "unread",
            },
            "spec": {"ingressClassName": "nginx", "tls": tls, "rules": [{"host": "unread"}]},
        })
    }

    fn names(declaration: &Declaration) -> &str {
        &declaration.settings[keys::NAMES]
    }

    #[test]
    fn each_secret_that_an_ingress_names_is_declared_for_its_hosts() {
        let annotations = json!({
            "cert-renew.io/issuer": "le", "cert-renew.io/key-type": "rsa-2048",
            "nginx.ingress.kubernetes.io/ssl-redirect": "true",
        });
        let tls = json!([
            {"secretName": "one", "hosts": ["a.example", "b.example"]},
            {"hosts": ["by-default.example"]},
            {"secretName": "two", "hosts": ["c.example"]},
            {"secretName": "one", "hosts": ["b.example", "d.example"]},
            {"secretName": "none"},
        ]);
        let all = read(ingress(annotations, tls));
        let [one, two, none] = &*all else {
            panic!("{all:?}");
        };
        assert_eq!(one.source.to_string(), "Ingress/web");
        assert_eq!(
            (&*one.secret, names(one)),
            ("one", "a.example, b.example, d.example")
        );
        assert_eq!((&*two.secret, names(two)), ("two", "c.example"));
        for it in [one, two] {
            assert_eq!(it.settings["cert-renew.io/key-type"], "rsa-2048");
            assert_eq!((it.settings.len(), &it.fault), (3, &None));
            assert!(it.remarks.is_empty());
        }
        assert!(
            none.fault
                .as_deref()
                .is_some_and(|it| it.contains("no entry of Secret none has a host"))
        );
        assert_eq!(
            crate::declaration::Source::read("Ingress/web"),
            Some(one.source.clone())
        );
    }

    #[test]
    fn an_ingress_without_an_issuer_or_of_another_class_declares_nothing() {
        let tls = json!([{"secretName": "one", "hosts": ["a.example"]}]);
        for (annotations, count) in [
            (json!({}), 0),
            (json!({"cert-renew.io/renew-before": "30d"}), 0),
            (json!({"cert-renew.io/issuer": "le"}), 1),
            (
                json!({"cert-renew.io/issuer": "le", "cert-renew.io/class": "edge"}),
                0,
            ),
        ] {
            let found = read(ingress(annotations.clone(), tls.clone()));
            assert_eq!(found.len(), count, "{annotations}");
        }
        let mut going = ingress(json!({"cert-renew.io/issuer": "le"}), tls);
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert!(read(going).is_empty());
        for odd in [
            json!(1),
            json!({"a": "b"}),
            json!(["c"]),
            json!([{"secretName": "../x"}]),
        ] {
            assert!(read(ingress(json!({"cert-renew.io/issuer": "le"}), odd)).is_empty());
        }
    }

    #[test]
    fn what_an_ingress_says_in_vain_is_told() {
        let annotations = json!({
            "cert-renew.io/issuer": "le", "cert-renew.io/names": "x.example", "cert-renew.io/secret": "other",
        });
        let tls = json!([{"secretName": "one", "hosts": ["a.example"]}]);
        let all = read(ingress(annotations, tls));
        let [one] = &*all else {
            panic!("{all:?}");
        };
        assert_eq!((&*one.secret, names(one)), ("one", "a.example"));
        assert_eq!(one.remarks.len(), 2, "{:?}", one.remarks);
    }

    #[test]
    fn settings_that_are_very_long_or_hold_a_private_key_are_copied_for_no_secret() {
        let secrets: Vec<Value> = { 0..100 }
            .map(|i| json!({"secretName": format!("s{i}"), "hosts": ["a.example"]}))
            .collect();
        for (value, why) in [
            ("x".repeat(20_000), "more than 16384 bytes"),
            ("-----BEGIN PRIVATE KEY-----".to_owned(), "private key"),
        ] {
            let annotations = json!({"cert-renew.io/issuer": "le", "cert-renew.io/verify": value});
            let all = read(ingress(annotations, json!(secrets)));
            assert_eq!(all.len(), 100);
            for it in &all {
                assert!(
                    it.fault.as_deref().is_some_and(|it| it.contains(why)),
                    "{it:?}"
                );
                assert_eq!(it.settings.len(), 1, "its names");
            }
        }
    }

    #[test]
    fn of_an_ingress_with_thousands_of_hosts_no_more_is_kept_than_is_refused() {
        let hosts: Vec<String> = (0..5_000).map(|i| format!("n{i}.example")).collect();
        let issuer = json!({"cert-renew.io/issuer": "le"});
        let one_entry = json!([{"secretName": "one", "hosts": hosts}]);
        let entries: Vec<Value> = { hosts.iter() }
            .map(|host| json!({"secretName": "one", "hosts": [host]}))
            .collect();
        let secrets: Vec<Value> = { 0..5_000 }
            .map(|i| json!({"secretName": format!("s{i}"), "hosts": ["a.example"]}))
            .collect();
        for (tls, count, told) in [
            (one_entry, 1, false),
            (json!(entries), 1, true),
            (json!(secrets), MOST_SECRETS, true),
        ] {
            let all = read(ingress(issuer.clone(), tls));
            assert_eq!(all.len(), count);
            assert_eq!(!all[0].remarks.is_empty(), told);
            assert!(
                all.iter()
                    .all(|it| names(it).split(", ").count() <= MAX_ITEMS + 1)
            );
        }
    }
}
