//! Order records: one Secret in the operator's namespace for each running order.
//!
//! A record contains what a restart needs to finish the order: its URL, the new key, the key authorizations. It is only
//! ever created, so two orders for one Secret never run, and deleted when the order is finished. The key authorizations
//! have a field of their own, the only one that the replicas' watch decodes.

use std::collections::BTreeMap;

use cert_renew_core::assess::Ordered;
use cert_renew_core::config::Dns01;
use cert_renew_core::schedule::due::Reason;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::text::hash::{digest, hexadecimal};
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use futures::{Stream, StreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, ListParams, ObjectMeta, Patch};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use super::challenge_routes::Routed;
use super::secrets::Keyed;
use crate::cluster::Error;
use crate::cluster::client::pages::Pages;
use crate::cluster::client::{call, params};

const LABEL: &str = "cert-renew.io/order-record";
const ORDER: &str = "order.json";
const KEY: &str = "tls.key";
const CHALLENGES: &str = "challenges.json";
/// Records in a page of a list; each is a few kilobytes.
const PAGE: u32 = 200;

/// The part of an order that a restart needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// Namespace of the Secret that is renewed.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The issuer whose account made the order.
    pub issuer: String,
    /// The issuer's directory at that time; missing in the record of a former version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// URL of that account; missing likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The order's URL.
    pub url: String,
    /// The requested names.
    #[serde(with = "texts")]
    pub names: Vec<Name>,
    /// The requested profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The requested lifetime, in seconds from `created` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u64>,
    /// Why the renewal was due.
    pub reason: String,
    /// Whether the clock asked for it; other reasons count against a budget.
    #[serde(default)]
    pub expected: bool,
    /// Whether the CA counts the order as the replacement of a certificate, which no limit applies to.
    #[serde(default)]
    pub replaced: bool,
    /// When the order was made, unix seconds.
    pub created: i64,
    /// The URLs of its authorizations: some CAs leave failed ones out of the order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorizations: Vec<String>,
    /// When the order expires at the CA, unix seconds, if it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
    /// TXT records that may exist as long as this record, and are removed before it. An entry of a later version that
    /// cannot be read is left out, which is logged: it does not stop the order.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "readable"
    )]
    pub txt: Vec<Txt>,
    /// Ingresses and HTTPRoutes, likewise.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "readable"
    )]
    pub routes: Vec<Routed>,
}

/// The entries of a list that this version can read.
fn readable<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let all = Option::<Vec<serde_json::Value>>::deserialize(deserializer)?;
    let all = all.unwrap_or_default().into_iter();
    Ok(all
        .filter_map(|entry| serde_json::from_value(entry).ok())
        .collect())
}

/// How many entries of the lists of an order, as it is written, were left out when it was read.
fn left_out(written: &[u8], order: &Order) -> usize {
    #[derive(Deserialize)]
    struct Lists {
        #[serde(default)]
        txt: Option<Vec<IgnoredAny>>,
        #[serde(default)]
        routes: Option<Vec<IgnoredAny>>,
    }
    let Ok(Lists { txt, routes }) = serde_json::from_slice(written) else {
        return 0;
    };
    let all: usize = [txt, routes].into_iter().flatten().map(|it| it.len()).sum();
    all.saturating_sub(order.txt.len() + order.routes.len())
}

/// A TXT record for DNS-01, with everything needed to set and to remove it.
///
/// In a record it only says what may have to be removed; the present config decides what is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Txt {
    /// The name that it validates, with `*.` in front for a wildcard.
    pub of: String,
    /// Its own name, with CNAMEs followed.
    pub at: String,
    /// Its zone.
    pub zone: String,
    /// Its value: a hash, which is no secret.
    pub value: String,
    /// The solver as configured when the record was set.
    pub solver: Dns01,
}

impl Txt {
    /// Whether both are the same record, set at the same host with the same settings.
    #[must_use]
    pub fn is_placed_as(&self, other: &Self) -> bool {
        let host = |it: &Self| {
            let Dns01 {
                provider,
                credentials,
                settings,
                propagation: _,
            } = it.solver.clone();
            (provider, credentials, settings)
        };
        self.at == other.at
            && self.zone == other.zone
            && self.value == other.value
            && host(self) == host(other)
    }
}

/// An order with its private data.
pub struct Record {
    /// Its name: [`record_name`], or [`former_record_name`].
    pub name: String,
    /// The order.
    pub order: Order,
    /// The new private key, PKCS#8 PEM.
    pub key: Zeroizing<String>,
    /// Key authorizations by HTTP-01 token.
    pub challenges: BTreeMap<String, String>,
    /// Uid of the record itself: only this one is ever deleted.
    pub uid: String,
}

/// An event of the replicas' watch.
#[derive(Clone, Debug)]
pub enum ChallengesChanged {
    /// A record exists, with these key authorizations by token.
    Present(String, BTreeMap<String, String>),
    /// A record is gone.
    Gone(String),
    /// The list begins again.
    Restarted,
    /// The list is complete: records that it did not name are gone.
    Listed,
}

/// Seconds after which an order without a known end is over: Let's Encrypt keeps one for a week.
const ORDER_LIFE: i64 = 8 * 86_400;

impl Order {
    /// Whether the order has expired according to the CA.
    #[must_use]
    pub fn is_over(&self, now: UnixTime) -> bool {
        let end = self.expires.unwrap_or(self.created + ORDER_LIFE);
        now.0 > end
    }

    /// What the Secret is compared with before the order goes on.
    #[must_use]
    pub fn ordered(&self) -> Ordered<'_> {
        Ordered {
            names: &self.names,
            created: UnixTime(self.created),
            by_the_ca: self.reason == Reason::RenewalInfo.as_str(),
        }
    }

    /// The Secret that is renewed.
    #[must_use]
    pub fn subject(&self) -> SecretRef {
        SecretRef::new(self.namespace.as_str(), self.name.as_str())
    }
}

/// Name of the record for a Secret: 128 bits of a digest, so that nobody can find a Secret whose record has the name of
/// another's.
#[must_use]
pub fn record_name(key: &SecretRef) -> String {
    name_of(&digest(&key.to_string()))
}

/// Its name in version 0.1: half as long. Its orders are continued.
#[must_use]
pub fn former_record_name(key: &SecretRef) -> String {
    let [first @ .., _, _, _, _, _, _, _, _] = digest(&key.to_string());
    name_of(&first)
}

fn name_of(digits: &[u8]) -> String {
    format!("cert-renew-order-{}", hexadecimal(digits))
}

/// Creates the record.
///
/// # Errors
/// [`Error::AlreadyExists`] if an order for the Secret is already running.
pub async fn create(
    client: &Client,
    namespace: &str,
    order: Order,
    key: Zeroizing<String>,
    challenges: BTreeMap<String, String>,
) -> Result<Record, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let subject = SecretRef::new(order.namespace.as_str(), order.name.as_str());
    let json = |value: serde_json::Result<Vec<u8>>| ByteString(value.unwrap_or_default());
    let keyed = Keyed::wiped(Secret {
        metadata: ObjectMeta {
            name: Some(record_name(&subject)),
            labels: Some(params::labels([(LABEL.into(), "true".into())])),
            ..ObjectMeta::default()
        },
        type_: Some(LABEL.into()),
        data: Some(BTreeMap::from([
            (ORDER.into(), json(serde_json::to_vec(&order))),
            (KEY.into(), ByteString(key.as_bytes().to_vec())),
            (CHALLENGES.into(), json(serde_json::to_vec(&challenges))),
        ])),
        ..Secret::default()
    });
    let post = params::post();
    let made = call(
        || format!("making the order record of {subject}"),
        api.create(&post, &keyed.secret),
    )
    .await?;
    let made = Keyed::wiped(made);
    Ok(Record {
        name: record_name(&subject),
        order,
        key,
        challenges,
        uid: made.secret.metadata.uid.clone().unwrap_or_default(),
    })
}

/// Writes the order's cleanup list and its key authorizations into exactly this record.
///
/// # Errors
/// Those of every call; [`Error::NotFound`] and [`Error::Conflict`] if the record has been replaced.
pub async fn update(client: &Client, namespace: &str, record: &Record) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let subject = record.order.subject();
    let json = |value: serde_json::Result<Vec<u8>>| ByteString(value.unwrap_or_default());
    let body = serde_json::json!({
        "metadata": {"uid": record.uid},
        "data": {
            ORDER: json(serde_json::to_vec(&record.order)),
            CHALLENGES: json(serde_json::to_vec(&record.challenges)),
        },
    });
    let params = params::patch();
    call(
        || format!("writing the order record of {subject}"),
        api.patch(&record.name, &params, &Patch::Merge(body)),
    )
    .await
    .map(|secret| drop(Keyed::wiped(secret)))
}

/// Deletes exactly this record; succeeds if it is already gone.
///
/// # Errors
/// Those of every call.
pub async fn delete(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let params = params::delete(uid);
    match call(
        || format!("deleting order record {name}"),
        api.delete(name, &params),
    )
    .await
    {
        Ok(_) | Err(Error::NotFound { .. } | Error::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads all records, one page after the other, and passes each with the Secret that it names to `each`; of an unreadable
/// one that alone, if it names one. There may be thousands: what is not needed of them is dropped at once.
///
/// # Errors
/// Those of every call.
pub async fn each(
    client: &Client,
    namespace: &str,
    mut each: impl FnMut(Option<SecretRef>, Option<Record>),
) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut pages = Pages::of(ListParams::default().labels(LABEL), PAGE);
    while let Some(params) = pages.next() {
        let page = call(|| "listing order records".into(), api.list(params)).await?;
        for mut keyed in page.items.into_iter().map(Keyed::wiped) {
            let subject = subject_of(&keyed.secret);
            each(subject, read(&mut keyed));
        }
        pages.came(&page.metadata);
    }
    Ok(())
}

/// The object under the name of a Secret's record.
pub enum Found {
    /// The record.
    Record(Box<Record>),
    /// A record that this version cannot read.
    Unreadable {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// No record.
    Nothing,
}

/// The record of one Secret.
///
/// # Errors
/// Those of every call; a record of another Secret is [`Error::Refused`].
pub async fn get(client: &Client, namespace: &str, subject: &SecretRef) -> Result<Found, Error> {
    let found = named(client, namespace, subject, record_name(subject)).await?;
    if matches!(found, Found::Nothing) {
        return named(client, namespace, subject, former_record_name(subject)).await;
    }
    Ok(found)
}

async fn named(
    client: &Client,
    namespace: &str,
    subject: &SecretRef,
    name: String,
) -> Result<Found, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let what = || format!("reading order record {name}");
    let mut keyed = match call(what, api.get(&name)).await {
        Ok(secret) => Keyed::wiped(secret),
        Err(Error::NotFound { .. }) => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    if is_of_another(&keyed.secret, subject) {
        return Err(Error::Refused {
            what: what(),
            message: "it is the record of another Secret".into(),
            code: None,
        });
    }
    let uid = keyed.secret.metadata.uid.clone().unwrap_or_default();
    Ok(match read(&mut keyed) {
        Some(record) => Found::Record(Box::new(record)),
        None => Found::Unreadable { name, uid },
    })
}

/// Whether a record names another Secret than the one that its own name belongs to: with enough effort, a user may find
/// two names with the same digest. An unreadable record names none.
fn is_of_another(secret: &Secret, subject: &SecretRef) -> bool {
    subject_of(secret).is_some_and(|found| found != *subject)
}

/// The Secret that a record names, however much else of it can be read.
fn subject_of(secret: &Secret) -> Option<SecretRef> {
    let order = secret.data.as_ref()?.get(ORDER)?;
    let order: serde_json::Value = serde_json::from_slice(&order.0).ok()?;
    Some(SecretRef::new(
        order.get("namespace")?.as_str()?,
        order.get("name")?.as_str()?,
    ))
}

/// Reads a record. Its data stays in the Secret, which is wiped, also if it cannot be read.
fn read(keyed: &mut Keyed) -> Option<Record> {
    let Secret { metadata, data, .. } = &mut keyed.secret;
    let (name, data) = (metadata.name.take()?, data.as_ref()?);
    let written = &data.get(ORDER)?.0;
    let order: Order = serde_json::from_slice(written).ok()?;
    let entries = left_out(written, &order);
    if entries > 0 {
        tracing::warn!(
            secret = %order.subject(), order = order.url, entries,
            "TXT records or routes of an order cannot be read: they are not removed with it; did a later version make it?"
        );
    }
    let key = std::str::from_utf8(&data.get(KEY)?.0).ok()?;
    let key = Zeroizing::new(key.to_owned());
    let challenges = serde_json::from_slice(&data.get(CHALLENGES)?.0).ok()?;
    // A record under another's name would let two orders run.
    let subject = order.subject();
    let is_its = name == record_name(&subject) || name == former_record_name(&subject);
    is_its.then(|| Record {
        name,
        order,
        key,
        challenges,
        uid: metadata.uid.take().unwrap_or_default(),
    })
}

/// The part of a record that the watch decodes.
#[derive(Clone, Debug, Deserialize)]
struct ThinRecord {
    metadata: ObjectMeta,
    #[serde(default)]
    data: ThinData,
}

#[derive(Clone, Default, Deserialize)]
struct ThinData {
    #[serde(default, rename = "challenges.json")]
    challenges: Option<ByteString>,
}

impl std::fmt::Debug for ThinData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ThinData(..)")
    }
}

impl kube::Resource for ThinRecord {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind(_: &()) -> std::borrow::Cow<'_, str> {
        "Secret".into()
    }
    fn group(_: &()) -> std::borrow::Cow<'_, str> {
        "".into()
    }
    fn version(_: &()) -> std::borrow::Cow<'_, str> {
        "v1".into()
    }
    fn plural(_: &()) -> std::borrow::Cow<'_, str> {
        "secrets".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl ThinRecord {
    /// The record's name, and its key authorizations by token, if they can be read.
    fn read(self) -> (String, Option<BTreeMap<String, String>>) {
        let name = self.metadata.name.unwrap_or_default();
        let challenges = match self.data.challenges {
            Some(bytes) => serde_json::from_slice(&bytes.0).ok(),
            None => Some(BTreeMap::new()),
        };
        (name, challenges)
    }
}

/// The key authorizations of all records, each with the record's name.
///
/// # Errors
/// Those of every call.
pub async fn challenges_now(
    client: &Client,
    namespace: &str,
    mut each: impl FnMut(String, BTreeMap<String, String>),
) -> Result<(), Error> {
    let api: Api<ThinRecord> = Api::namespaced(client.clone(), namespace);
    let mut pages = Pages::of(ListParams::default().labels(LABEL), PAGE);
    while let Some(params) = pages.next() {
        let page = call(|| "listing order records".into(), api.list(params)).await?;
        for (record, challenges) in page.items.into_iter().map(ThinRecord::read) {
            // The watch tells of unreadable ones; anybody may cause such a list each second.
            each(record, challenges.unwrap_or_default());
        }
        pages.came(&page.metadata);
    }
    Ok(())
}

/// Follows the key authorizations of all records: every replica answers the CA. It never ends: an error is that of one
/// list or watch, which is tried again after a while, as the default of kube-runtime has it.
pub fn challenges(
    client: &Client,
    namespace: &str,
) -> impl Stream<Item = Result<ChallengesChanged, watcher::Error>> + use<> {
    let api: Api<ThinRecord> = Api::namespaced(client.clone(), namespace);
    let config = watcher::Config::default().labels(LABEL).page_size(PAGE);
    watcher(api, config)
        .default_backoff()
        .filter_map(|event| async move {
            let present = |record: ThinRecord| {
                let (name, challenges) = record.read();
                if challenges.is_none() {
                    tracing::warn!(
                        record = name,
                        "the key authorizations of an order record cannot be read: the CA gets no answer for this order"
                    );
                }
                ChallengesChanged::Present(name, challenges.unwrap_or_default())
            };
            match event {
                Ok(watcher::Event::Apply(record) | watcher::Event::InitApply(record)) => {
                    Some(Ok(present(record)))
                }
                Ok(watcher::Event::Delete(record)) => Some(Ok(ChallengesChanged::Gone(
                    record.metadata.name.unwrap_or_default(),
                ))),
                Ok(watcher::Event::Init) => Some(Ok(ChallengesChanged::Restarted)),
                Ok(watcher::Event::InitDone) => Some(Ok(ChallengesChanged::Listed)),
                Err(error) => Some(Err(error)),
            }
        })
}

mod texts {
    //! Names as texts.
    use cert_renew_core::text::name::Name;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        names: &[Name],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(names.iter().map(Name::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Name>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts
            .iter()
            .map(|text| text.parse().map_err(D::Error::custom))
            .collect()
    }
}

#[cfg(test)]
mod tests;
