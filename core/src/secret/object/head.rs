//! The part of a Secret's metadata that is kept: identity, and our own annotations.
//!
//! Nothing else is read: `last-applied-configuration` contains the whole Secret with its key, and managedFields are
//! most of the bytes. They are read only of a Secret that cert-manager may write.

use std::collections::BTreeMap;

use kube_core::ObjectMeta;
use serde::de::MapAccess;

use super::keepers::{self, Keeper, Manager, Owner};
use super::lenient::{Fill, Shape};
use crate::secret::keys;
use crate::text::hash::hash;

/// Identity, annotations and opt-in label of a Secret.
#[derive(Clone, Default)]
pub struct Head {
    /// Name, namespace, uid, resourceVersion and our annotations; all other fields stay empty. kube requires this form.
    pub(in crate::secret) metadata: ObjectMeta,
    /// Whether the label `cert-renew.io/managed` is `true`.
    pub managed: bool,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// The first annotation whose prefix is nearly ours; see [`keys::is_near`].
    pub near: Option<Box<str>>,
    /// Whether the API server refuses changes of its data.
    pub immutable: bool,
    /// The object for which another program writes it; see [`keepers`].
    pub keeper: Option<Keeper>,
    /// Whether it has the annotation by which cert-manager names its Certificate.
    names_certificate: bool,
    /// The first label that is called like one of our annotations: it is not read.
    pub label: Option<Box<str>>,
}

impl Head {
    /// The identity of one version, for a patch; its annotations are not known.
    #[must_use]
    pub fn of(namespace: &str, name: &str, uid: &str, resource_version: &str) -> Self {
        let metadata = ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            resource_version: Some(resource_version.to_owned()),
            ..ObjectMeta::default()
        };
        Self {
            metadata,
            ..Self::default()
        }
    }

    /// The identity without the annotations, of which a user may write very many.
    #[must_use]
    pub fn identity(&self) -> Self {
        Self::of(
            self.namespace(),
            self.name(),
            self.uid(),
            self.resource_version(),
        )
    }

    /// The same with these annotations, in place of all that are under our two prefixes.
    #[must_use]
    pub fn annotated(mut self, annotations: BTreeMap<String, String>) -> Self {
        self.metadata.annotations = Some(annotations).filter(|it| !it.is_empty());
        self
    }

    /// Its name. Like the next three, empty only in objects that no API server made.
    #[must_use]
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Distinguishes it from a later Secret of the same name.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The version for a guarded patch; opaque.
    #[must_use]
    pub fn resource_version(&self) -> &str {
        self.metadata
            .resource_version
            .as_deref()
            .unwrap_or_default()
    }

    /// The annotations under our two prefixes.
    #[must_use]
    pub fn annotations(&self) -> Option<&BTreeMap<String, String>> {
        self.metadata.annotations.as_ref()
    }

    /// One of our annotations.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations()?.get(key).map(String::as_str)
    }

    /// Its settings, hashed; annotations that we write ourselves are left out.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let all = self.annotations().into_iter().flatten();
        let settings = all.filter(|(key, _)| key.starts_with(keys::PREFIX));
        hash(&format!("{:?}", settings.collect::<Vec<_>>()))
    }

    /// Whether it has an annotation of ours, or the opt-in label. Other Secrets are dropped.
    #[must_use]
    pub fn concerns_us(&self) -> bool {
        self.managed || self.annotations().is_some()
    }

    /// `namespace/name`, all that Debug output shows of a Secret.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}/{}", self.namespace(), self.name())
    }
}

impl Shape for Head {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let metadata = &mut self.metadata;
        match key {
            "name" => map.next_value_seed(Fill(&mut metadata.name)),
            "namespace" => map.next_value_seed(Fill(&mut metadata.namespace)),
            "uid" => map.next_value_seed(Fill(&mut metadata.uid)),
            "resourceVersion" => map.next_value_seed(Fill(&mut metadata.resource_version)),
            "annotations" => {
                let mut annotations = Annotations {
                    ours: &mut metadata.annotations,
                    near: &mut self.near,
                    names_certificate: &mut self.names_certificate,
                };
                map.next_value_seed(Fill(&mut annotations))
            }
            "labels" => map.next_value_seed(Fill(&mut Labels {
                managed: &mut self.managed,
                label: &mut self.label,
            })),
            "ownerReferences" => {
                let mut owners: Vec<Owner> = Vec::new();
                map.next_value_seed(Fill(&mut owners))?;
                self.keeper = keepers::of(&owners, &[]).or_else(|| self.keeper.take());
                Ok(())
            }
            // Most of the bytes of a Secret, and read only of those that cert-manager may write; an API server sends
            // the annotations before.
            "managedFields" if self.names_certificate => {
                let mut managers: Vec<Manager> = Vec::new();
                map.next_value_seed(Fill(&mut managers))?;
                self.keeper = self.keeper.take().or_else(|| keepers::of(&[], &managers));
                Ok(())
            }
            "deletionTimestamp" => {
                let mut at: Option<String> = None;
                map.next_value_seed(Fill(&mut at))?;
                self.deleting = at.is_some();
                Ok(())
            }
            _ => ().member(key, map),
        }
    }
}

/// For skipped values.
impl Shape for () {}

struct Annotations<'a> {
    ours: &'a mut Option<BTreeMap<String, String>>,
    near: &'a mut Option<Box<str>>,
    names_certificate: &'a mut bool,
}

impl Shape for Annotations<'_> {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        if !key.starts_with(keys::PREFIX) && !key.starts_with(keys::STATE_PREFIX) {
            *self.names_certificate |= key == keepers::CERTIFICATE_NAME;
            if self.near.is_none() && keys::is_near(key) {
                *self.near = Some(key.into());
            }
            return ().member(key, map);
        }
        let mut value: Option<String> = None;
        map.next_value_seed(Fill(&mut value))?;
        if let Some(value) = value {
            self.ours
                .get_or_insert_default()
                .insert(key.to_owned(), value);
        }
        Ok(())
    }
}

struct Labels<'a> {
    managed: &'a mut bool,
    label: &'a mut Option<Box<str>>,
}

impl Shape for Labels<'_> {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        if key != keys::MANAGED_LABEL {
            let name = key.strip_prefix(keys::PREFIX);
            if self.label.is_none() && name.is_some_and(keys::is_setting) {
                *self.label = Some(key.into());
            }
            return ().member(key, map);
        }
        let mut value: Option<String> = None;
        map.next_value_seed(Fill(&mut value))?;
        *self.managed = value.as_deref() == Some("true");
        Ok(())
    }
}
/// Tells kube that a type is a Secret; its metadata is that of the named [`Head`].
macro_rules! is_a_secret {
    ($secret:ty, $($head:tt)+) => {
        impl kube_core::Resource for $secret {
            type DynamicType = ();
            type Scope = kube_core::NamespaceResourceScope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                "Secret".into()
            }

            fn group((): &()) -> std::borrow::Cow<'_, str> {
                "".into()
            }

            fn version((): &()) -> std::borrow::Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                "secrets".into()
            }

            fn meta(&self) -> &kube_core::ObjectMeta {
                &self.$($head)+.metadata
            }

            fn meta_mut(&mut self) -> &mut kube_core::ObjectMeta {
                &mut self.$($head)+.metadata
            }
        }
    };
}
pub(in crate::secret) use is_a_secret;
