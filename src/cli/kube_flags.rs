//! kubectl's own flags: the cluster, the user and the namespace.

use std::path::PathBuf;

use clap::Args;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};

use super::Failure;
use crate::cluster;

/// The heading of these flags in the help. Named for each: a heading of the struct would go on to the flags after it.
pub(super) const CONNECTION: &str = "Connection";

/// Which cluster is asked, and as whom. Without any of it: as kubectl would.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Way {
    /// The kubeconfig file; otherwise $KUBECONFIG, ~/.kube/config, or the pod's own account
    #[arg(long, value_name = "FILE", help_heading = CONNECTION)]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; otherwise the current one
    #[arg(long, value_name = "NAME", help_heading = CONNECTION)]
    context: Option<String>,
    /// Act as this user; needs the right to impersonate
    #[arg(long = "as", value_name = "USER", help_heading = CONNECTION)]
    user: Option<String>,
    /// Act as a member of this group; may be repeated
    #[arg(
        long = "as-group",
        value_name = "GROUP",
        requires = "user",
        help_heading = CONNECTION
    )]
    groups: Vec<String>,
}

impl Way {
    /// A client with these flags.
    pub(super) async fn client(&self) -> Result<Client, Failure> {
        let way = cluster::Way {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            user: self.user.clone(),
            groups: self.groups.clone(),
        };
        cluster::connect(&way, None)
            .await
            .map_err(|error| Failure::new("finding the way to the API server", &*error))
    }
}

/// A way, and one namespace at its end.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Place {
    /// Namespace; that of the context otherwise
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    way: Way,
}

impl Place {
    pub(super) async fn client(&self) -> Result<Client, Failure> {
        self.way.client().await
    }

    /// The selected namespace.
    pub(super) fn namespace<'a>(&'a self, client: &'a Client) -> &'a str {
        let named = self.namespace.as_deref();
        named.unwrap_or_else(|| client.default_namespace())
    }

    /// Namespace and name of `NAMESPACE/NAME`, or of a name in the selected namespace.
    pub(super) fn of(&self, client: &Client, text: &str) -> (String, String) {
        match text.split_once('/') {
            Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
            None => (self.namespace(client).to_owned(), text.to_owned()),
        }
    }
}

/// A place, or everywhere.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Scope {
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    #[command(flatten)]
    place: Place,
}

impl Scope {
    pub(super) async fn client(&self) -> Result<Client, Failure> {
        self.place.client().await
    }

    /// The namespace of this scope; None for all.
    pub(super) fn namespace<'a>(&'a self, client: &'a Client) -> Option<&'a str> {
        (!self.all_namespaces).then(|| self.place.namespace(client))
    }

    /// Namespace and name of `NAMESPACE/NAME`, or of a name in the selected namespace.
    pub(super) fn of(&self, client: &Client, text: &str) -> (String, String) {
        self.place.of(client, text)
    }

    /// The objects in this scope.
    pub(super) fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        if self.all_namespaces {
            Api::all(client.clone())
        } else {
            Api::namespaced(client.clone(), self.place.namespace(client))
        }
    }
}
