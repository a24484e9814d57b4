//! Asks the API server whose a token is, and whether they may see what the operator shows.
//!
//! The answer to a TokenReview repeats the token, so it is decoded here: kube would log what it cannot decode.

use std::time::Duration;

use http::Request;
use http::header::CONTENT_TYPE;
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::cluster::Error;
use crate::cluster::client::call;
use crate::net::metrics_port::access::{Question, Verdict, Wanted};

/// The Service of the metrics port, with the port's name. A user who may ask it through the API server may ask it directly.
pub const SERVICE: &str = "cert-renew-metrics:metrics";
/// The path of the metrics, which RBAC's nonResourceURLs name.
const METRICS: &str = "/metrics";
/// Longest time for a review: Prometheus waits ten seconds for its answer.
const REVIEW: Duration = Duration::from_secs(5);

/// A TokenReview that leaves the token where it is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenReview<'a> {
    api_version: &'static str,
    kind: &'static str,
    spec: TokenReviewSpec<'a>,
}

#[derive(Serialize)]
struct TokenReviewSpec<'a> {
    token: &'a str,
    audiences: &'a [&'static str],
}

/// The part of a TokenReview that the API server fills in.
#[derive(Deserialize)]
struct Reviewed {
    #[serde(default)]
    status: TokenReviewStatus,
}

/// Reviews a token for an operator in this namespace.
///
/// # Errors
/// When the API server does not answer in time, or the right to ask is missing.
pub async fn review(
    client: &Client,
    namespace: &str,
    question: &Question,
) -> Result<Verdict, Error> {
    let what = || "reviewing a token, for which rbac/addons/access.yaml has the right".to_owned();
    let answer = timeout(REVIEW, async {
        match owner(client, question, what).await? {
            Some(user) => right(client, namespace, question.wanted, user, what).await,
            None => Ok(Verdict::Unknown),
        }
    });
    answer
        .await
        .unwrap_or_else(|_| Err(Error::Deadline { what: what() }))
}

/// Whose token it is; nobody's if the API server does not take it.
async fn owner(
    client: &Client,
    question: &Question,
    what: impl Fn() -> String,
) -> Result<Option<UserInfo>, Error> {
    let review = TokenReview {
        api_version: "authentication.k8s.io/v1",
        kind: "TokenReview",
        spec: TokenReviewSpec {
            token: &question.token,
            audiences: question.audience.as_slice(),
        },
    };
    let strange = |message: &str| Error::Unavailable {
        what: what(),
        message: message.to_owned(),
        code: None,
    };
    let body = serde_json::to_vec(&review).map_err(|_| strange("the request cannot be made"))?;
    let request = Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
        .header(CONTENT_TYPE, "application/json")
        .body(body);
    let request = request.map_err(|_| strange("the request cannot be made"))?;
    let answer = Zeroizing::new(call(&what, client.request_text(request)).await?);
    let Reviewed { status } = serde_json::from_str(&answer)
        .map_err(|_| strange("its answer is not what was asked for"))?;
    let audience = question.audience.is_none_or(|wanted| {
        let for_these = status.audiences.iter().flatten();
        for_these.into_iter().any(|it| it == wanted)
    });
    let authenticated = status.authenticated.unwrap_or_default() && audience;
    let user = status.user.filter(|_| authenticated);
    // Without a name nobody could be given a right.
    Ok(user.filter(|user| user.username.as_ref().is_some_and(|it| !it.is_empty())))
}

/// Whether they have the right.
async fn right(
    client: &Client,
    namespace: &str,
    wanted: Wanted,
    user: UserInfo,
    what: impl FnOnce() -> String,
) -> Result<Verdict, Error> {
    let name = user.username.clone().unwrap_or_default();
    let mut spec = SubjectAccessReviewSpec {
        user: user.username,
        uid: user.uid,
        groups: user.groups,
        extra: user.extra,
        ..SubjectAccessReviewSpec::default()
    };
    let right = match wanted {
        // Not the path: every user may get the nonResourceURL /api/*, by the role system:discovery.
        Wanted::Page => {
            spec.resource_attributes = Some(ResourceAttributes {
                verb: Some("get".into()),
                version: Some("v1".into()),
                resource: Some("services".into()),
                subresource: Some("proxy".into()),
                namespace: Some(namespace.into()),
                name: Some(SERVICE.into()),
                ..ResourceAttributes::default()
            });
            format!("services/proxy {SERVICE} in namespace {namespace} (rbac/addons/viewer.yaml)")
        }
        Wanted::Metrics => {
            spec.non_resource_attributes = Some(NonResourceAttributes {
                path: Some(METRICS.into()),
                verb: Some("get".into()),
            });
            format!("the nonResourceURL {METRICS}")
        }
    };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let review = SubjectAccessReview {
        spec,
        ..SubjectAccessReview::default()
    };
    let answer = call(what, reviews.create(&PostParams::default(), &review)).await?;
    let status = answer.status.unwrap_or_default();
    Ok(if status.allowed && !status.denied.unwrap_or_default() {
        Verdict::Allowed
    } else {
        Verdict::Forbidden(format!("{name} may not get {right}").into())
    })
}
