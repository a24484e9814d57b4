//! A Secret as the API server has it now, and what it asks for: the renewal's only source of truth.
//!
//! It is read again before each irreversible step, because the user may have changed it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cert_renew_core::assess::{self, Assessment};
use cert_renew_core::certificate::{Leaf, pair};
use cert_renew_core::config::{Config, Issuer, Labels};
use cert_renew_core::schedule::due::{Never, Reason};
use cert_renew_core::schedule::rate_limits::{Claim, TriedWith};
use cert_renew_core::secret::declared;
use cert_renew_core::secret::object::full::LightSecret;
use cert_renew_core::secret::settings::IssuerRef;
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::text::hash::hash;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use tokio::time::Instant;

use super::renewals::Renewal;
use crate::acme::CertId;
use crate::cluster::order_records::{self, Record};
use crate::cluster::{self, namespaces, secrets};
use crate::process::permit::{self, Permit};
use crate::renewal::outcome::failure::{Failure, FailureContext};

/// A Secret as it is now, and what it asks for.
pub(super) struct RenewalTarget {
    pub(super) secret: LightSecret,
    pub(super) assessment: Assessment,
    /// The issuer that the Secret names.
    pub(super) home: Arc<str>,
    /// The namespace's labels, where they matter.
    pub(super) labels: Option<BTreeMap<String, String>>,
    /// The issuer that is asked: `home`, or a fallback.
    pub(super) issuer_name: Arc<str>,
    pub(super) issuer: Issuer,
    /// The config by which it was judged.
    config: Arc<Config>,
}

/// When a Secret that still wants its running order may change, at the moment before a step.
pub(super) enum Readiness {
    /// Now: permission for the one step that follows.
    Go(Permit<()>, Box<RenewalTarget>),
    /// Not before then.
    Waits(UnixTime),
}

impl Renewal<'_> {
    /// Looks at the Secret of an order, by the current config and clock.
    ///
    /// # Errors
    /// As [`Self::read`]; [`Failure::Unwanted`] where the Secret no longer wants the order.
    pub(super) async fn look(self, record: &Record) -> Result<Readiness, Failure> {
        let waited = Instant::now();
        let (look, fresh) = permit::Look::take(Box::pin(self.read(UnixTime::now()))).await?;
        let fresh = fresh.ok_or(Failure::Unwanted)?;
        let fresh = fresh.at(&self.shared.config(), &record.order.issuer);
        if fresh.assessment.renewal.is_err_and(Never::is_pause) {
            return Ok(Readiness::Waits(UnixTime::NEVER));
        }
        if fresh.is_left_alone() || !fresh.still_wants(record) {
            return Err(Failure::Unwanted);
        }
        if let Some(opens) = fresh.shut_until(UnixTime::now()) {
            return Ok(Readiness::Waits(opens));
        }
        let permit = permit::Look::permit([&look], waited, ()).ok_or(Failure::Outdated)?;
        Ok(Readiness::Go(permit, Box::new(fresh)))
    }

    /// Permission for the one step that follows, if the Secret still asks for it as it is now.
    ///
    /// # Errors
    /// As [`Self::read`]; [`Failure::Unwanted`] where it is gone or does not ask for it.
    pub(super) async fn permitted(
        self,
        asks: impl FnOnce(RenewalTarget, UnixTime) -> bool,
    ) -> Result<Permit<()>, Failure> {
        let (waited, now) = (Instant::now(), UnixTime::now());
        // On the heap: it is asked for deep within a request to the CA.
        let (look, seen) = permit::Look::take(Box::pin(self.read(now))).await?;
        if !seen.is_some_and(|it| asks(it, now)) {
            return Err(Failure::Unwanted);
        }
        permit::Look::permit([&look], waited, ()).ok_or(Failure::Outdated)
    }

    /// The Secret as it is now; `None` where it is gone, or asks for nothing.
    ///
    /// # Errors
    /// When it, or the labels of a namespace where they matter, cannot be read, or the config has no such issuer.
    pub(super) async fn read(self, now: UnixTime) -> Result<Option<RenewalTarget>, Failure> {
        let config = self.shared.config();
        // Before the Secret, so that none is held with all of its data while this answer is waited for.
        let (labels, unread) = if config.needs_namespace_labels() {
            match namespaces::labels(&self.shared.client, &self.key.namespace).await {
                Ok(labels) => (Some(labels), None),
                Err(error) => (None, Some(error)),
            }
        } else {
            (None, None)
        };
        let secret = match secrets::get(&self.shared.client, self.key).await {
            Err(cluster::Error::NotFound { .. }) => return Ok(None),
            secret => secret?,
        };
        let view = (&*config, view_of(labels.as_ref()));
        let Some(assessment) = assess::of_full(now, self.key, &secret, view, |leaf| {
            self.all.info.instant(self.key, leaf)
        }) else {
            return Ok(None);
        };
        let IssuerRef::Named(issuer_name) = assessment.settings.issuer.clone() else {
            return Ok(None);
        };
        let Some(issuer) = config.issuer(&issuer_name).cloned() else {
            return Err(Failure::NoIssuer(issuer_name));
        };
        let settings = &assessment.settings;
        let outputs = settings.outputs.iter().map(|output| &*output.name);
        let needed = { settings.pkcs12_password_key.as_deref() }
            .into_iter()
            .chain(outputs);
        let needed: Vec<&str> = needed.collect();
        let fresh = RenewalTarget {
            secret: secret.lighten(&needed),
            assessment,
            home: Arc::clone(&issuer_name),
            labels,
            issuer_name,
            issuer,
            config,
        };
        match unread {
            None => Ok(Some(fresh)),
            Some(error) => Err(Failure::Labels(error).about(&fresh)),
        }
    }
}

impl RenewalTarget {
    /// Whether it is the Secret's own issuer that is asked.
    pub(super) fn is_at_home(&self) -> bool {
        self.issuer_name == self.home
    }

    pub(super) fn uid(&self) -> &str {
        self.secret.head.uid()
    }

    /// The namespace's labels in the form that the config checks.
    pub(super) fn labels(&self) -> Labels<'_> {
        view_of(self.labels.as_ref())
    }

    /// The Secret's leaf, if it can be read.
    pub(super) fn leaf(&self) -> Option<&Leaf> {
        self.assessment.leaf.as_ref().ok()
    }

    /// Until when the Secret may not change: its change window is closed, or an annotation is invalid.
    pub(super) fn shut_until(&self, now: UnixTime) -> Option<UnixTime> {
        self.assessment
            .opens
            .max(self.assessment.blocked_until(now))
    }

    /// Whether another program writes it, the API server refuses to change its data, or nothing declares it any more.
    pub(super) fn is_left_alone(&self) -> bool {
        let head = &self.secret.head;
        let key = SecretRef::new(head.namespace(), head.name());
        head.immutable || self.secret.kept_for().is_some() || declared::is_undeclared(&key, head)
    }

    /// The claim on the rate limits of a Secret that is due for this reason.
    pub(super) fn claim(&self, reason: Reason) -> Claim<'_> {
        let claim = self.assessment.claim(reason);
        Claim {
            caused: claim.caused || self.is_broken(UnixTime::now()),
            ..claim
        }
    }

    /// Whether its key and certificate do not belong together, or no server can load them.
    fn is_broken(&self, now: UnixTime) -> bool {
        let (certificate, private_key) = self.secret.pair();
        let look = pair::Strictness {
            external: false,
            der: self.secret.place().der,
        };
        pair::check_rollable(certificate, private_key, now, look).is_err()
    }

    /// See [`Assessment::names_to_order`].
    pub(super) fn names_to_order(&self) -> Vec<Name> {
        self.assessment.names_to_order()
    }

    /// What the new certificate replaces (RFC 9773): only a certificate that the same issuer's account was given.
    pub(super) fn replaced(&self) -> Option<CertId> {
        let issued_by = self.assessment.issued_by.as_ref()?;
        let leaf = self.leaf()?;
        let authority = leaf.authority_key_id.as_ref()?;
        (*issued_by.issuer == *self.issuer_name).then(|| CertId::new(authority, &leaf.serial))
    }

    /// Whether the Secret still asks for the certificate of the record's order.
    pub(super) fn still_wants(&self, record: &Record) -> bool {
        let order_records::Order {
            uid,
            issuer,
            directory,
            ..
        } = &record.order;
        // Another CA does not know the order, and the order's CA would refuse an account of the other.
        let moved = { directory.as_ref() }.is_some_and(|it| *it != self.issuer.directory);
        self.uid() == *uid
            && *self.issuer_name == **issuer
            && !moved
            && self.assessment.still_wants(record.order.ordered())
    }

    /// The assessment's text on names that are not allowed.
    pub(super) fn refusal(&self) -> String {
        let problems = self.assessment.problems.iter();
        let names = problems.filter(|problem| &*problem.key == keys::NAMES);
        names.map(ToString::to_string).collect()
    }
}

fn view_of(labels: Option<&BTreeMap<String, String>>) -> Labels<'_> {
    labels.map_or(Labels::NotAsked, Labels::Are)
}

impl Failure {
    /// Adds the order in which it happened, so that the user can ask the CA about it.
    pub(super) fn in_order(mut self, url: &str) -> Self {
        if let Self::About { of, .. } = &mut self {
            of.order = Some(url.into());
        }
        self
    }

    /// Adds the Secret to which it happened.
    pub(super) fn about(self, fresh: &RenewalTarget) -> Self {
        if matches!(self, Self::About { .. }) {
            return self;
        }
        let of = FailureContext {
            uid: fresh.uid().to_owned(),
            account: fresh.assessment.account,
            wish: fresh.assessment.unserved(),
            order: None,
            issuer: Arc::clone(&fresh.issuer_name),
            directory: fresh.issuer.directory.clone(),
            leaf: fresh.leaf().cloned(),
            names: fresh.names_to_order(),
            lifetime: fresh.lifetime(),
            has_staging: fresh.issuer.staging.is_some(),
            has_fallback: fresh.issuer.fallback.is_some(),
            tried_with: TriedWith {
                config: fresh.config.digest(),
                subject: hash(&fresh.secret.head.place().to_string()),
                settings: fresh.secret.head.digest(),
            },
        };
        Self::About {
            what: Box::new(self),
            of: Box::new(of),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use parking_lot::Mutex;
    use tower::service_fn;

    use super::*;
    use crate::context::tests::with;
    use crate::renewal::renewals::Renewals;

    #[tokio::test]
    async fn labels_are_asked_for_before_the_secret_is_held() {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&asked);
        // It has nothing.
        let answer = move |request: Request<Body>| {
            noted.lock().push(request.uri().path().to_owned());
            let gone = Response::builder().status(404).body(Body::empty());
            async move { Ok::<_, Infallible>(gone.unwrap()) }
        };
        let (shared, in_force) = with(Client::new(service_fn(answer), "cert-renew"));
        let config = "issuers: {le: {directory: https://ca.example/, allow: [{namespaceSelector: {matchLabels: {a: b}}, \
                      names: ['*.shop.example']}]}}";
        in_force.send_replace(Arc::new(Config::parse(config).unwrap()));
        let (renewals, key) = (Renewals::new(shared), SecretRef::new("shop", "tls"));
        let _ = renewals.of(&key).read(UnixTime::now()).await;
        let expected = [
            "/api/v1/namespaces/shop",
            "/api/v1/namespaces/shop/secrets/tls",
        ];
        assert_eq!(*asked.lock(), expected);
    }
}
