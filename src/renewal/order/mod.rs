//! Makes an order and records it before any irreversible step.

pub(super) mod cleanup;
pub(super) mod followers;
pub(super) mod record;
pub(super) mod resume;
pub(super) mod running_orders;
pub(super) mod timing;

use std::time::Duration;

use cert_renew_core::schedule::due::Due;
use cert_renew_core::schedule::rate_limits;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use tokio::time::{Instant, timeout};

use super::outcome::Outcome;
use super::renewals::Renewal;
use super::target::RenewalTarget;
use crate::acme::{self, OrderRequest};
use crate::cluster;
use crate::cluster::order_records::{self, Record};
use crate::context::Shared;
use crate::process::permit::Permit;
use crate::renewal::challenges::ways::{self, ProofPlan};
use crate::renewal::order::record::give_back;
use crate::renewal::order::timing::took;
use crate::renewal::outcome::failure::Failure;
use crate::renewal::preflight;
use crate::telemetry::metrics::RenewalStep;
use crate::telemetry::stage::Stage;

/// Most names of one order in a log line: a certificate may be for a thousand.
const MOST_LOGGED: usize = 20;
/// Longest time until an order is recorded, however long it takes to find out how its names are proven: a hundred
/// authorizations and a slow DNS server take minutes.
const UNWRITTEN: Duration = Duration::from_secs(2);
/// Divisor of the lifetime that an order asks for: with less than this share left, the order is made again. With more
/// left the certificate is worth having, and is renewed by its own lifetime.
const LEAST_LEFT: u32 = 4;
/// Delay until a Secret is looked at again for whose order there is no room.
const ROOM_AGAIN: Duration = Duration::from_secs(600);

impl Renewal<'_> {
    /// Makes the order and its record, then goes on as after a restart.
    ///
    /// # Errors
    /// See [`Failure`]; what happens before there is a record leaves nothing behind at the CA.
    pub(super) async fn order(self, fresh: RenewalTarget, due: Due) -> Result<Outcome, Failure> {
        let names = fresh.names_to_order();
        let count = names.len();
        tracing::info!(
            secret = %self.key, step = Stage::Due.name(), issuer = %fresh.issuer_name, reason = due.reason.as_str(), names = ?texts(&names), "due"
        );
        let ours = |failure: Failure| failure.about(&fresh);
        let key_choice = fresh.key_choice().map_err(ours)?;
        ways::check(&names).map_err(ours)?;
        let ready = { self.all.issuers.ready(&fresh.issuer_name, &fresh.issuer) }.await;
        let mut client = ready.map_err(|error| ours(error.into()))?;
        if let Some(held) = self.held_by_the_ca(&fresh, &client, &names).await {
            return Ok(held);
        }
        let prepared = self.check_before_order(&fresh, &client, &names).await;
        let profile = prepared.map_err(ours)?;
        let proving = self.all.validations.begin(
            &self.shared.ledger,
            &fresh.issuer_name,
            &names,
            &self.shared.config().retry,
            UnixTime::now(),
        );
        let _proving = match proving {
            Ok(proving) => proving,
            Err(held) => return Ok(self.unproven(&fresh, held)),
        };
        if !self.all.running_orders.has_room(self.key, count) {
            return Ok(too_many_open(self.key, self.shared));
        }
        let quota = fresh.issuer.orders_per_3h;
        if let Err(until) = self
            .all
            .issuers
            .take_order(&fresh.issuer_name, self.key, quota)
        {
            return Ok(out_of_orders(self.key, &fresh, quota, until));
        }
        let started = Instant::now();
        // An order that is made but not recorded would be lost.
        let step = self.shared.gate.step().map_err(|_| Failure::Stopped)?;
        let replaced = fresh.replaced();
        let request = OrderRequest {
            profile,
            not_after: fresh.lifetime().map(|it| UnixTime::now() + it),
            replaces: replaced.as_ref(),
        };
        let mut order = self.new_order(&fresh, &client, &names, request).await;
        let is_the_key = matches!(&order, Err(Failure::Acme(error)) if error.may_be_the_key());
        if is_the_key
            && matches!(
                self.all.issuers.account_is_new(&fresh.issuer_name).await,
                Ok(true)
            )
        {
            let ready = { self.all.issuers.ready(&fresh.issuer_name, &fresh.issuer) }.await;
            client = ready.map_err(|error| ours(error.into()))?;
            order = self.new_order(&fresh, &client, &names, request).await;
        }
        let is_refused = |failure: &Failure| !matches!(failure, Failure::Acme(_));
        if order.as_ref().is_err_and(is_refused) {
            // The CA was not asked: other Secrets may order in its place.
            let issuers = &self.all.issuers;
            issuers.give_order_back(&fresh.issuer_name, self.key);
        }
        let mut order = order.map_err(ours)?;
        let begun = async {
            let pem = key_choice.key().await?.to_pem()?;
            let plan = async {
                ProofPlan::make(&self.shared.config(), order.authorizations().await?).await
            };
            // Without a plan the order goes on as after a restart.
            let plan = timeout(UNWRITTEN, plan).await.ok().transpose()?;
            let challenges = plan.as_ref().map(ProofPlan::challenges).transpose()?;
            Ok::<_, Failure>((plan, challenges.unwrap_or_default(), pem))
        };
        let (plan, challenges, pem) = match begun.await {
            Ok(begun) => begun,
            Err(failure) => {
                give_back(&order).await;
                return Err(failure.about(&fresh));
            }
        };
        let stored = order_records::Order {
            namespace: self.key.namespace.to_string(),
            name: self.key.name.to_string(),
            uid: fresh.uid().to_owned(),
            issuer: fresh.issuer_name.to_string(),
            directory: Some(fresh.issuer.directory.clone()),
            account: client.account_url(),
            url: order.url().to_owned(),
            names,
            profile: profile.map(ToOwned::to_owned),
            lifetime: fresh.lifetime().map(|it| it.as_secs()),
            reason: due.reason.as_str().to_owned(),
            expected: fresh.claim(due.reason).is_scheduled(UnixTime::now()),
            // A certificate that the CA wants back at once counts, replaced or not.
            replaced: order.replaces_accepted()
                && fresh.claim(due.reason).is_expected(UnixTime::now()),
            created: { self.shared.ledger.get(fresh.assessment.account) }
                .order_at(UnixTime::now())
                .0,
            authorizations: order.authorization_urls().to_vec(),
            expires: order.expires().map(|at| at.0),
            txt: { plan.iter().flat_map(ProofPlan::txt) }.cloned().collect(),
            routes: { plan.iter().flat_map(ProofPlan::routes) }
                .cloned()
                .collect(),
        };
        let (api, namespace) = (&self.shared.client, &self.shared.namespace);
        let made = order_records::create(api, namespace, stored, pem, challenges).await;
        let record = self.remember(&order, count, made).await?;
        drop(step);
        took(&self.shared.metrics, &record, RenewalStep::Order, started);
        let issuer = &fresh.issuer_name;
        tracing::info!(secret = %self.key, step = Stage::Order.name(), %issuer, order = record.order.url, "ordered");
        let begun = resume::Begun {
            record,
            order,
            plan,
        };
        self.proceed(fresh, begun, due.reason).await
    }

    /// Checks all that can be found out before the CA counts anything; returns the profile to ask for.
    async fn check_before_order<'a>(
        self,
        fresh: &'a RenewalTarget,
        client: &acme::Client,
        names: &[Name],
    ) -> Result<Option<&'a str>, Failure> {
        // On the heap: it goes through an order of its own, in the middle of this one.
        Box::pin(self.rehearse(fresh, names)).await?;
        let profile = fresh.profile(client).await?;
        self.foresee(fresh, client, names).await?;
        Ok(profile)
    }

    /// Asks the CA for the order, with a look at the Secret after the last wait, which is that for the CA's other
    /// requests.
    async fn new_order(
        self,
        fresh: &RenewalTarget,
        client: &acme::Client,
        names: &[Name],
        request: OrderRequest<'_>,
    ) -> Result<acme::Order, Failure> {
        let may = move || self.may_still_order(fresh, names);
        // On the heap: it looks at the Secret within the request, and an order asks twice.
        let ordered = Box::pin(client.new_order_if(names, request, may));
        Ok(ordered.await?)
    }

    /// Permission to ask the CA for the order: the Secret is still there and due, and asks for the same.
    async fn may_still_order(
        self,
        fresh: &RenewalTarget,
        names: &[Name],
    ) -> Result<Permit<()>, Failure> {
        let asks = |it: RenewalTarget, now| {
            let it = it.at(&self.shared.config(), &fresh.issuer_name);
            it.asks_as(fresh, names, now)
        };
        self.permitted(asks).await
    }
}

impl RenewalTarget {
    /// Whether it may be renewed now, by an order as it was prepared for an earlier look at the same Secret.
    fn asks_as(&self, earlier: &Self, names: &[Name], now: UnixTime) -> bool {
        let leaf = |of: &Self| of.leaf().map(|leaf| leaf.fingerprint);
        self.uid() == earlier.uid()
            && self.secret.head.digest() == earlier.secret.head.digest()
            && leaf(self) == leaf(earlier)
            && self.issuer_name == earlier.issuer_name
            && self.issuer.directory == earlier.issuer.directory
            && self.names_to_order() == names
            && self.assessment.renewal.is_ok_and(|due| due.at <= now)
            && self.assessment.opens.is_none()
            && !self.is_left_alone()
    }
}

impl RenewalTarget {
    /// The profile that the Secret names to its own issuer, whatever that offers.
    fn named_profile(&self) -> Option<&str> {
        let named = self.assessment.settings.profile.as_deref();
        named.filter(|_| self.is_at_home())
    }

    /// The profile to ask for. The issuer's own is a preference, and a fallback has others: a CA that lacks a profile
    /// of that name is not failed for it.
    fn profile_of(&self, directory: &acme::Directory) -> Option<&str> {
        let offered = &directory.meta.profiles;
        let named = self.assessment.settings.profile.as_deref();
        let mut wanted = named.into_iter().chain(self.issuer.profile.as_deref());
        let found = wanted.find(|profile| offered.contains_key(*profile));
        self.named_profile().or(found)
    }

    /// As [`Self::profile_of`]; the directory is read only where it matters.
    ///
    /// # Errors
    /// When the CA's directory cannot be read.
    async fn profile(&self, client: &acme::Client) -> Result<Option<&str>, acme::Error> {
        match self.named_profile() {
            Some(named) => Ok(Some(named)),
            None => Ok(self.profile_of(client.directory().await?.as_ref())),
        }
    }
}

impl RenewalTarget {
    /// Whether an order for this profile is what the Secret asks for now. A Secret that names none accepts an order for
    /// none: a changed preference of the issuer is for the next one.
    ///
    /// # Errors
    /// When the CA's directory cannot be read.
    pub(super) async fn takes_profile(
        &self,
        client: &acme::Client,
        ordered: Option<&str>,
    ) -> Result<bool, acme::Error> {
        let wanted = self.profile(client).await?;
        Ok(self.is_profile(wanted, ordered))
    }

    /// As [`Self::takes_profile`], by a directory that was read before.
    pub(super) fn takes_profile_of(
        &self,
        directory: &acme::Directory,
        ordered: Option<&str>,
    ) -> bool {
        self.is_profile(self.profile_of(directory), ordered)
    }

    fn is_profile(&self, wanted: Option<&str>, ordered: Option<&str>) -> bool {
        let is_named = self.assessment.settings.profile.is_some();
        wanted == ordered || (!is_named && ordered.is_none())
    }
}

impl RenewalTarget {
    /// The lifetime to ask for. A fallback is asked for its own: a lifetime that it would refuse must not stop it.
    pub(super) fn lifetime(&self) -> Option<Duration> {
        let asked = self.assessment.settings.lifetime;
        asked.filter(|_| self.is_at_home())
    }

    /// Whether an order that is not finalized is what the Secret waits for now, its profile and key apart.
    pub(super) fn awaits(&self, order: &order_records::Order, now: UnixTime) -> bool {
        self.assessment.awaits(now, order.ordered()) && self.takes_lifetime(order, now)
    }

    /// Whether an order asks for the lifetime that the Secret asks for now. The end of a certificate is fixed when it
    /// is ordered: an order that waits for too long brings one that has ended.
    fn takes_lifetime(&self, ordered: &order_records::Order, now: UnixTime) -> bool {
        let Some(lifetime) = self.lifetime() else {
            return ordered.lifetime.is_none();
        };
        let left = (UnixTime(ordered.created) + lifetime).since(now);
        ordered.lifetime == Some(lifetime.as_secs()) && left >= lifetime / LEAST_LEFT
    }
}

/// The issuer's `ordersPer3h` are used up.
fn out_of_orders(key: &SecretRef, fresh: &RenewalTarget, quota: u32, until: UnixTime) -> Outcome {
    let note = format!(
        "issuer {}: its ordersPer3h ({quota}) are used up; this one's turn is at {until}",
        fresh.issuer_name
    );
    waits(key, until, note)
}

/// Open orders, of the namespace or of all, leave no room for another one.
fn too_many_open(key: &SecretRef, shared: &Shared) -> Outcome {
    let (until, namespace) = (UnixTime::now() + ROOM_AGAIN, &key.namespace);
    let note = format!(
        "too many names wait in open orders, of namespace {namespace} or of all; this one is ordered when others are done, \
         or no longer asked for: {} shows what they wait for",
        shared.command(&format!("cert-renew status -n {namespace}"))
    );
    waits(key, until, note)
}

fn waits(key: &SecretRef, until: UnixTime, note: String) -> Outcome {
    tracing::info!(secret = %key, %until, note, "the renewal waits");
    Outcome::Later(until, Some(note.into()))
}

impl Renewal<'_> {
    /// Remembers that there is a record, which may be another's, and drops an order that has none.
    async fn remember(
        self,
        order: &acme::Order,
        names: usize,
        made: Result<Record, cluster::Error>,
    ) -> Result<Record, cluster::Error> {
        match &made {
            Ok(_) => self.all.running_orders.insert(self.key, names),
            // It may exist although the answer is missing: the next attempt looks, and goes on with it or makes
            // another.
            Err(error) if error.is_uncertain() => self.all.running_orders.insert(self.key, names),
            Err(error) => {
                // Another order runs, or this one has no record: drop it.
                tracing::debug!(secret = %self.key, %error, "the order is dropped");
                give_back(order).await;
                if matches!(error, cluster::Error::AlreadyExists { .. }) {
                    self.all.running_orders.insert(self.key, names);
                }
            }
        }
        made
    }
}

impl Renewal<'_> {
    /// Finds out what the CA will refuse, unless the certificate is close to expiry.
    async fn foresee(
        self,
        fresh: &RenewalTarget,
        client: &acme::Client,
        names: &[Name],
    ) -> Result<(), Failure> {
        let leaf = fresh.leaf();
        if leaf.is_some() && rate_limits::runs_short(UnixTime::now(), leaf) {
            return Ok(());
        }
        let directory = client.directory().await?;
        let account = client.account_url();
        let asked = preflight::PlannedOrder {
            names,
            profile: { fresh.assessment.settings.profile.as_deref() }
                .filter(|_| fresh.is_at_home()),
            lifetime: fresh.lifetime(),
            issuer: &fresh.issuer,
            account: account.as_deref(),
            key_type: fresh.assessment.key_type(),
        };
        let mut refused = preflight::by_the_ca(&asked);
        refused.extend(preflight::by_profile(&asked, &directory));
        if !refused.is_empty() {
            return Err(Failure::Hopeless(refused.join("; ")));
        }
        match preflight::by_caa(&asked, &directory, &self.shared.config()).await {
            found if found.is_empty() => Ok(()),
            found => Err(Failure::Forbidden(found.join("; "))),
        }
    }
}

fn texts(names: &[Name]) -> Vec<String> {
    let more = names.len().saturating_sub(MOST_LOGGED);
    let more = (more > 0).then(|| format!("and {more} more"));
    let first = names.iter().take(MOST_LOGGED).map(Name::to_string);
    first.chain(more).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use cert_renew_core::config::Config;
    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use tower::service_fn;

    use super::*;
    use crate::context::tests::with;
    use crate::renewal::renewals::Renewals;

    /// An API server that has this Secret, or none, and no other object.
    fn serving(secret: &Arc<Mutex<Option<Value>>>) -> Client {
        let secret = Arc::clone(secret);
        let server = service_fn(move |_: Request<Body>| {
            let found = secret.lock().clone();
            let status: u16 = if found.is_some() { 200 } else { 404 };
            let gone = || {
                json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
                    "reason": "NotFound", "message": "secrets \"tls\" not found",
                })
            };
            let body = found.unwrap_or_else(gone).to_string();
            let answer = Response::builder().status(status);
            let answer = answer.body(Body::from(body.into_bytes())).unwrap();
            async move { Ok::<_, Infallible>(answer) }
        });
        Client::new(server, "cert-renew")
    }

    #[test]
    fn of_very_many_names_a_log_line_has_the_first_and_their_number() {
        let names = |count: usize| -> Vec<Name> {
            let name = |number: usize| format!("n{number}.example").parse().unwrap();
            (0..count).map(name).collect()
        };
        assert_eq!(texts(&names(2)), ["n0.example", "n1.example"]);
        assert_eq!(texts(&names(MOST_LOGGED)).len(), MOST_LOGGED);
        let many = texts(&names(1_000));
        assert_eq!(many.len(), MOST_LOGGED + 1);
        assert_eq!(many[MOST_LOGGED], "and 980 more");
    }

    #[tokio::test]
    async fn the_profile_of_an_order_is_judged_by_a_directory_that_was_read_before() {
        let secret = Arc::default();
        let (shared, in_force) = with(serving(&secret));
        let config = "issuers: {le: {directory: https://ca.example/dir, profile: short, \
                      allow: [{namespaces: [shop], names: [a.example]}]}}";
        in_force.send_replace(Arc::new(Config::parse(config).unwrap()));
        let renewals = Renewals::new(shared);
        let key = SecretRef::new("shop", "tls");
        for (named, offered, ordered, takes) in [
            (None, "short", Some("short"), true),
            (None, "short", Some("tls"), false),
            (None, "tls", Some("short"), false),
            // A preference of the issuer is for the next order.
            (None, "short", None, true),
            (Some("tls"), "short", Some("tls"), true),
            (Some("tls"), "short", Some("short"), false),
            (Some("tls"), "tls", None, false),
        ] {
            let mut annotations =
                json!({"cert-renew.io/issuer": "le", "cert-renew.io/names": "a.example"});
            if let Some(named) = named {
                annotations["cert-renew.io/profile"] = named.into();
            }
            let metadata = json!({
                "name": "tls", "namespace": "shop", "uid": "u", "resourceVersion": "1",
                "annotations": annotations,
            });
            *secret.lock() = Some(json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata,
                "data": {},
            }));
            let fresh = renewals.of(&key).read(UnixTime::now()).await;
            let fresh = fresh.ok().flatten().unwrap();
            let mut profiles = json!({});
            profiles[offered] = "one".into();
            let directory = json!({
                "newNonce": "n", "newAccount": "a", "newOrder": "o", "meta": {"profiles": profiles},
            });
            let directory: acme::Directory = serde_json::from_value(directory).unwrap();
            let found = fresh.takes_profile_of(&directory, ordered);
            assert_eq!(found, takes, "{named:?} {offered} {ordered:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_ordered_for_a_secret_that_has_changed_while_its_order_was_prepared() {
        let made = |uid: &str, more: (&str, &str)| {
            let mut annotations =
                json!({"cert-renew.io/issuer": "le", "cert-renew.io/names": "a.example"});
            annotations[more.0] = more.1.into();
            let metadata = json!({
                "name": "tls", "namespace": "shop", "uid": uid, "resourceVersion": "1",
                "annotations": annotations,
            });
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata,
                "data": {},
            })
        };
        let none = ("example.com/note", "x");
        let mut immutable = made("u", none);
        immutable["immutable"] = true.into();
        let secret = Arc::default();
        let (shared, in_force) = with(serving(&secret));
        let config = "issuers: {le: {directory: https://ca.example/dir, \
                      allow: [{namespaces: [shop], names: [a.example, b.example]}]}}";
        in_force.send_replace(Arc::new(Config::parse(config).unwrap()));
        let renewals = Renewals::new(shared);
        let key = SecretRef::new("shop", "tls");
        let renewal = renewals.of(&key);
        for (later, may, why) in [
            (Some(made("u", none)), true, "it is as it was"),
            (
                Some(made("u", ("example.com/note", "y"))),
                true,
                "what others write",
            ),
            (None, false, "deleted"),
            (Some(made("v", none)), false, "deleted and made again"),
            (
                Some(made("u", ("cert-renew.io/names", "b.example"))),
                false,
                "other names",
            ),
            (
                Some(made("u", ("cert-renew.io/paused", "true"))),
                false,
                "paused",
            ),
            (
                Some(made("u", ("cert-renew.io/key-type", "rsa-2048"))),
                false,
                "another key",
            ),
            (Some(immutable), false, "it can no longer be written"),
        ] {
            *secret.lock() = Some(made("u", none));
            let fresh = renewal.read(UnixTime::now()).await.ok().flatten().unwrap();
            let names = fresh.names_to_order();
            *secret.lock() = later;
            let permit = renewal.may_still_order(&fresh, &names).await;
            assert_eq!(permit.is_ok(), may, "{why}");
            let unwanted = matches!(permit, Err(Failure::Unwanted));
            assert_eq!(unwanted, !may, "{why}");
            // A rehearsal proves names alone, with a key that is not used.
            let rehearses = renewal.may_still_rehearse(&fresh, &names).await;
            assert_eq!(rehearses.is_ok(), may || why == "another key", "{why}");
        }
    }
}
