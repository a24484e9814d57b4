//! Installing: the shipped manifests, put into the namespace of an instance.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::api::{DynamicObject, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{Operator, SHIPPED_NAME};
use crate::cluster::{apply, resource_of};
use crate::eventually;

/// The authorizer of the API server learns new roles by its own watch.
const RBAC_DEADLINE: Duration = Duration::from_secs(30);

impl Operator<'_> {
    /// Applies one more file of `rbac/` in the same manner, for example `addons/eviction.yaml`, and waits until the API
    /// server goes by it.
    ///
    /// # Errors
    /// When the API server refuses something.
    pub async fn apply_shipped(&self, file: &str) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../rbac")
            .join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let manifests: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        let client = self.bench.client()?;
        for mut manifest in manifests {
            self.adopt(&mut manifest);
            apply(&client, &manifest).await?;
            if manifest["kind"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("Binding"))
            {
                self.wait_for_rights(&client, &manifest["roleRef"]).await?;
            }
        }
        Ok(())
    }

    /// Puts the manifest into the namespace of this instance, and names what belongs to the whole cluster after it.
    fn adopt(&self, manifest: &mut Value) {
        let rename = |name: &mut Value| {
            if let Some(suffix) = name
                .as_str()
                .and_then(|name| name.strip_prefix(SHIPPED_NAME))
            {
                *name = format!("{}{suffix}", self.namespace).into();
            }
        };
        match manifest.pointer_mut("/metadata/namespace") {
            Some(namespace) => *namespace = self.namespace.as_str().into(),
            None => rename(&mut manifest["metadata"]["name"]),
        }
        if manifest["roleRef"]["kind"] == "ClusterRole" {
            rename(&mut manifest["roleRef"]["name"]);
        }
        for subject in manifest
            .get_mut("subjects")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            subject["namespace"] = self.namespace.as_str().into();
        }
    }

    async fn wait_for_rights(&self, client: &Client, role: &Value) -> Result<()> {
        let kind = role["kind"].as_str().unwrap_or_default();
        let resource = resource_of("rbac.authorization.k8s.io/v1", kind);
        let roles: Api<DynamicObject> = match kind {
            "ClusterRole" => Api::all_with(client.clone(), &resource),
            _ => Api::namespaced_with(client.clone(), &self.namespace, &resource),
        };
        let role = roles.get(role["name"].as_str().unwrap_or_default()).await?;
        let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
        for rule in role.data["rules"].as_array().into_iter().flatten() {
            let (resource, subresource) = {
                let resource = rule["resources"][0].as_str().unwrap_or_default();
                resource.split_once('/').unwrap_or((resource, ""))
            };
            let review: SubjectAccessReview = serde_json::from_value(json!({"spec": {
                "user": self.user(),
                "resourceAttributes": {
                    "namespace": self.namespace,
                    "group": rule["apiGroups"][0],
                    "resource": resource,
                    "subresource": subresource,
                    "verb": rule["verbs"][0],
                },
            }}))?;
            eventually(
                RBAC_DEADLINE,
                "the API server goes by a new role",
                async || {
                    let review = reviews.create(&PostParams::default(), &review).await?;
                    ensure!(
                        review.status.is_some_and(|status| status.allowed),
                        "not allowed: {rule}"
                    );
                    Ok(())
                },
            )
            .await?;
        }
        Ok(())
    }
}
