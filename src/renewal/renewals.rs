//! What all renewals hold together, and one renewal's view of it.

use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::index::Observed;
use cert_renew_core::schedule::token_bucket::TokenBucket;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::time::UnixTime;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::info::RenewalInfo;
use super::issuers::Issuers;
use crate::cluster;
use crate::cluster::events::Reason;
use crate::context::Shared;
use crate::net::user_lookups::UserLookups;
use crate::renewal::limits::validations::Validations;
use crate::renewal::order::followers::Followers;
use crate::renewal::order::running_orders::RunningOrders;
use crate::renewal::outcome::secret_failures::SecretFailures;
use crate::solver::dns01;
use crate::solver::http01::ChallengeStore;
use crate::solver::http01_self_check::SharedRoutes;

/// Most looks at a namespace's workloads at once for the first text about a Secret, then one a second; the texts beyond
/// that do not name them.
const LOOKUPS: u32 = 50;

/// Longest renewal. An order with a record goes on from there. The parts of a renewal, each with a deadline of its own,
/// seldom add up to it.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// What all renewals hold together.
pub struct Renewals {
    /// What renewals share with rollouts and the controller.
    pub shared: Arc<Shared>,
    /// ACME clients by issuer, made when first needed.
    pub issuers: Issuers,
    /// The renewal information of the CAs.
    pub info: Arc<RenewalInfo>,
    /// Known order records.
    pub running_orders: RunningOrders,
    /// Failures of single Secrets.
    pub secret_failures: SecretFailures,
    /// Since when Secrets wait for another one's order.
    pub followers: Followers,
    /// Who uses a Secret: for the text that tells of a new one, at most so often in each namespace.
    pub(super) users: Option<UsersOf>,
    pub(super) lookups: Mutex<TokenBucket>,
    /// Key authorizations that the challenge port answers with.
    pub challenges: ChallengeStore,
    /// Names under validation.
    pub(super) validations: Validations,
    /// Sets and removes TXT records.
    pub(super) dns01: dns01::Solver,
    /// Lookups of the hosts whose routes are checked.
    pub(super) user_lookups: Arc<UserLookups>,
    /// The Ingresses and HTTPRoutes of ours, with their users.
    pub(super) routes: SharedRoutes,
    /// Longest renewal: it gives its place back after this, whatever it waits for. An order is given up no longer.
    pub(super) longest: Duration,
}

/// The names of the workloads that use a Secret, or that it names; none where that cannot be told soon. Rollouts know it,
/// which use renewals and not the other way round.
pub(super) type UsersOf = Arc<
    dyn Fn(SecretRef, Vec<WorkloadRef>) -> BoxFuture<'static, Option<Vec<String>>> + Send + Sync,
>;

/// The renewal of one Secret.
#[derive(Clone, Copy)]
pub struct Renewal<'a> {
    pub(super) all: &'a Renewals,
    pub(super) shared: &'a Shared,
    pub(super) key: &'a SecretRef,
}

impl Renewal<'_> {
    /// Publishes an Event on the Secret.
    pub(super) fn tell(self, uid: &str, reason: Reason, note: &str) {
        self.shared.events.secret(self.key, uid, reason, note);
    }
}

impl Renewals {
    /// Nothing is renewed yet, and no CA known.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        let (client, namespace) = (&shared.client, &shared.namespace);
        Self {
            issuers: Issuers::new(
                client.clone(),
                Arc::clone(namespace),
                Arc::clone(&shared.metrics),
                shared.gate.clone(),
            )
            .carried_by(shared.carrier.clone()),
            dns01: dns01::Solver::new(client.clone(), Arc::clone(namespace), shared.gate.clone()),
            info: Arc::default(),
            running_orders: RunningOrders::default(),
            secret_failures: SecretFailures::default(),
            followers: Followers::default(),
            users: None,
            lookups: Mutex::new(TokenBucket::new(LOOKUPS)),
            challenges: ChallengeStore::default(),
            validations: Validations::default(),
            user_lookups: Arc::default(),
            routes: SharedRoutes::default(),
            longest: LONGEST,
            shared,
        }
    }

    /// The same, which can tell who uses a Secret.
    #[must_use]
    pub fn knowing(self, users: UsersOf) -> Self {
        Self {
            users: Some(users),
            ..self
        }
    }

    /// The renewal of this Secret.
    #[must_use]
    pub fn of<'a>(&'a self, key: &'a SecretRef) -> Renewal<'a> {
        Renewal {
            all: self,
            shared: &self.shared,
            key,
        }
    }

    /// Earliest instant of the next try after a failure: for these names, or for this Secret alone.
    #[must_use]
    pub fn retry_at(&self, now: UnixTime, observed: &Observed) -> Option<UnixTime> {
        let Observed {
            uid, account, wish, ..
        } = observed;
        let of_names = self.shared.ledger.retry_at(now, *account, *wish);
        of_names.max(self.secret_failures.retry_at(now, uid, *wish))
    }

    /// Failed renewals of a Secret in a row.
    #[must_use]
    pub fn failures(&self, observed: &Observed) -> u32 {
        let of_names = self.shared.ledger.failures(observed.account);
        of_names.max(self.secret_failures.count(&observed.uid))
    }

    /// Forgets what it remembers of a Secret that is gone.
    pub fn forget(&self, key: &SecretRef) {
        self.issuers.forget_told(key);
        self.followers.forget(key);
    }

    /// Reads what former leaders left: the ledger and the order records.
    ///
    /// # Errors
    /// Any error of a call to the API server.
    pub async fn reload(&self) -> Result<(), cluster::Error> {
        let Shared {
            client,
            namespace,
            ledger,
            ..
        } = &*self.shared;
        ledger.reload().await?;
        ledger.mend_by_config(self.shared.config().digest());
        self.running_orders.reload(client, namespace).await
    }
}
