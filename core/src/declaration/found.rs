//! An object that may declare certificates, whatever its kind, as a watch or a read brings it.

use std::sync::Arc;

use kube_core::ObjectMeta;

use super::ingress::Ingress;
use super::object::Metadata;
use super::{Declaration, Kind, Source};

/// An object that may declare certificates.
#[derive(Clone, Debug)]
pub enum Found {
    /// A ConfigMap.
    ConfigMap(Metadata),
    /// An Ingress.
    Ingress(Ingress),
}

impl From<Metadata> for Found {
    fn from(object: Metadata) -> Self {
        Self::ConfigMap(object)
    }
}

impl From<Ingress> for Found {
    fn from(object: Ingress) -> Self {
        Self::Ingress(object)
    }
}

impl Found {
    fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::ConfigMap(object) => &object.metadata,
            Self::Ingress(object) => &object.metadata,
        }
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> Arc<str> {
        let namespace = self.metadata().namespace.as_deref();
        namespace.unwrap_or_default().into()
    }

    /// The object.
    #[must_use]
    pub fn source(&self) -> Source {
        let kind = match self {
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Ingress(_) => Kind::Ingress,
        };
        let name = self.metadata().name.as_deref();
        Source {
            kind,
            name: name.unwrap_or_default().into(),
        }
    }

    /// What it declares to an installation of this class.
    #[must_use]
    pub fn declarations(&self, class: &str) -> Vec<Declaration> {
        match self {
            Self::ConfigMap(object) => {
                let declaration = Declaration::of_config_map(&object.metadata, class);
                declaration.into_iter().collect()
            }
            Self::Ingress(object) => Declaration::of_ingress(object, class),
        }
    }
}
