//! kubectl's own flags: the cluster, the user and the namespace.

use std::path::PathBuf;

use cert_renew_core::text::shown;
use clap::Args;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};

use crate::cli::Failure;
use crate::cluster;

/// The heading of these flags in the help. Named for each: a heading of the struct would go on to the flags after it.
pub(in crate::cli) const CONNECTION: &str = "Connection options";

/// Which cluster is asked, and as whom. Without any of it: as kubectl would.
#[derive(Clone, Debug, Default, Args)]
pub(in crate::cli) struct KubeFlags {
    /// The kubeconfig file; by default $KUBECONFIG, ~/.kube/config, or the pod's own account
    #[arg(long, value_name = "FILE", help_heading = CONNECTION)]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; by default the current one
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

impl KubeFlags {
    /// A client with these flags.
    pub(in crate::cli) async fn client(&self) -> Result<Client, Failure> {
        self.connect(false).await
    }

    /// A client of each kind.
    pub(in crate::cli) async fn clients(&self) -> Result<Clients, Failure> {
        Ok(Clients {
            api: self.connect(false).await?,
            once: self.connect(true).await?,
        })
    }

    async fn connect(&self, once: bool) -> Result<Client, Failure> {
        let way = cluster::KubeConfigSource {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            user: self.user.clone(),
            groups: self.groups.clone(),
            once,
        };
        cluster::connect(&way, None)
            .await
            .map_err(|error| Failure::new("connecting to the API server", &*error))
    }
}

/// Where the operator is installed.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct OperatorNamespace {
    /// The operator's namespace
    #[arg(
        long,
        env = "POD_NAMESPACE",
        default_value = cert_renew_core::verdict::NAMESPACE,
        value_name = "NAMESPACE"
    )]
    pub(in crate::cli) operator_namespace: String,
}

/// Clients of the API server.
pub(in crate::cli) struct Clients {
    /// It asks again while the API server is overloaded or not there.
    pub(in crate::cli) api: Client,
    /// It does not: for an operator that may not be there.
    pub(in crate::cli) once: Client,
}

/// A way, and one namespace at its end.
#[derive(Clone, Debug, Default, Args)]
pub(in crate::cli) struct NamespaceFlags {
    /// The namespace; by default that of the context
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    way: KubeFlags,
}

impl NamespaceFlags {
    pub(in crate::cli) async fn client(&self) -> Result<Client, Failure> {
        self.way.client().await
    }

    /// A client of each kind.
    pub(in crate::cli) async fn clients(&self) -> Result<Clients, Failure> {
        self.way.clients().await
    }

    /// The selected namespace.
    pub(in crate::cli) fn namespace<'a>(&'a self, client: &'a Client) -> &'a str {
        let named = self.namespace.as_deref();
        named.unwrap_or_else(|| client.default_namespace())
    }

    /// The namespace that a flag names.
    pub(in crate::cli) fn flag(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Namespace and name of `NAMESPACE/NAME`, or of a name in the selected namespace.
    pub(in crate::cli) fn of(
        &self,
        client: &Client,
        text: &str,
    ) -> Result<(String, String), Failure> {
        let (namespace, name) = self.named(text)?;
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        Ok((namespace, name))
    }

    /// The same without the namespace of the context.
    pub(in crate::cli) fn named(&self, text: &str) -> Result<(Option<String>, String), Failure> {
        let parts: Vec<&str> = text.split('/').collect();
        let (namespace, name) = match parts[..] {
            [name] if !name.is_empty() => (None, name),
            [namespace, name] if !namespace.is_empty() && !name.is_empty() => {
                (Some(namespace), name)
            }
            _ => {
                return Err(Failure(format!(
                    "{}: expected NAME or NAMESPACE/NAME",
                    shown(text)
                )));
            }
        };
        match (namespace, self.flag()) {
            (Some(named), Some(flag)) if named != flag => Err(Failure(format!(
                "{}: it is in another namespace than -n {flag} says; leave one of them out",
                shown(text)
            ))),
            (named, flag) => Ok((named.or(flag).map(ToOwned::to_owned), name.to_owned())),
        }
    }
}

/// A place, or everywhere.
#[derive(Clone, Debug, Default, Args)]
pub(in crate::cli) struct Scope {
    /// Look in all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    #[command(flatten)]
    place: NamespaceFlags,
}

impl Scope {
    /// A client with these flags.
    pub(in crate::cli) async fn client(&self) -> Result<Client, Failure> {
        self.place.client().await
    }

    /// A client of each kind.
    pub(in crate::cli) async fn clients(&self) -> Result<Clients, Failure> {
        self.place.clients().await
    }

    /// The namespace of this scope; None for all.
    pub(in crate::cli) fn namespace<'a>(&'a self, client: &'a Client) -> Option<&'a str> {
        (!self.all_namespaces).then(|| self.place.namespace(client))
    }

    /// Namespace and name of `NAMESPACE/NAME`, or of a name in the selected namespace.
    ///
    /// # Errors
    /// When the text has another form.
    pub(in crate::cli) fn of(
        &self,
        client: &Client,
        text: &str,
    ) -> Result<(String, String), Failure> {
        self.place.of(client, text)
    }

    /// Whether these names say where their Secrets are.
    ///
    /// # Errors
    /// When all namespaces are asked for and a Secret is named without its own.
    pub(in crate::cli) fn takes_names(&self, names: &[String]) -> Result<(), Failure> {
        match names.iter().find(|name| !name.contains('/')) {
            Some(name) if self.all_namespaces => Err(Failure(format!(
                "{}: with -A a Secret is named NAMESPACE/NAME",
                shown(name)
            ))),
            _ => Ok(()),
        }
    }

    /// All namespaces were asked for.
    pub(in crate::cli) fn is_everywhere(&self) -> bool {
        self.all_namespaces
    }

    /// The namespace, where one is selected.
    pub(in crate::cli) fn place(&self) -> &NamespaceFlags {
        &self.place
    }

    /// The objects in this scope.
    pub(in crate::cli) fn api<K>(&self, client: &Client) -> Api<K>
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everywhere_a_name_needs_its_namespace() {
        let everywhere = Scope {
            all_namespaces: true,
            ..Scope::default()
        };
        let takes = |scope: &Scope, name: &str| scope.takes_names(&[name.to_owned()]);
        assert!(takes(&everywhere, "shop/tls").is_ok());
        assert!(takes(&Scope::default(), "tls").is_ok());
        let refused = takes(&everywhere, "tls").unwrap_err();
        assert!(refused.0.contains("NAMESPACE/NAME"), "{}", refused.0);
    }

    #[test]
    fn a_name_is_a_name_or_a_namespace_and_a_name() {
        let named = |text: &str, flag: Option<&str>| {
            let place = NamespaceFlags {
                namespace: flag.map(ToOwned::to_owned),
                ..NamespaceFlags::default()
            };
            place.named(text).map_err(|failure| failure.0)
        };
        let found = |namespace: Option<&str>, name: &str| {
            Ok((namespace.map(ToOwned::to_owned), name.to_owned()))
        };
        assert_eq!(named("tls", None), found(None, "tls"));
        assert_eq!(named("tls", Some("shop")), found(Some("shop"), "tls"));
        assert_eq!(named("shop/tls", None), found(Some("shop"), "tls"));
        assert_eq!(named("shop/tls", Some("shop")), found(Some("shop"), "tls"));
        for odd in ["", "/", "shop/", "/tls", "a/b/c", "shop//tls"] {
            assert!(named(odd, None).is_err(), "{odd}");
        }
        let said = named("shop/tls", Some("blog")).unwrap_err();
        assert!(said.contains("another namespace"), "{said}");
    }
}
