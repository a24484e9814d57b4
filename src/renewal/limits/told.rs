//! What is told of one Secret's limits and of its last certificates: a view of the ledger and of the issuers' quotas.
//!
//! Read only. Whether a renewal may start is decided in `core::schedule` and [`super::validations`], not here.

use cert_renew_core::index::Observed;
use cert_renew_core::schedule::rate_limits::{self, IssuanceHistory};
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::detail::{Limit, Moment};

use super::ca;
use crate::renewal::renewals::Renewals;

impl Renewals {
    /// The limits of the Secret's issuer, as they are counted for these names; of an issuer that the config lacks, none.
    #[must_use]
    pub fn limits(&self, now: UnixTime, observed: &Observed, names: &[Name]) -> Vec<Limit> {
        let (config, ledger) = (self.shared.config(), &self.shared.ledger);
        let name = &*observed.issuer;
        let Some(issuer) = config.issuer(name) else {
            return Vec::new();
        };
        let (orders, until) = self.issuers.usage(now, name, issuer.orders_per_3h);
        let account = ledger.get(observed.account);
        let [all, unscheduled] = account.issues(now);
        let mut limits = vec![
            Limit::counted("orders", name, orders),
            Limit::counted("certificates", name, all),
            Limit::counted("unscheduled", name, unscheduled),
        ];
        for asked in names {
            let account = ledger.get(rate_limits::account_of_name(name, asked));
            let failed = account.failed_validations(now, &config.retry);
            if failed.used > 0 {
                limits.push(Limit::counted("validations", &asked.to_string(), failed));
            }
        }
        let of_names = ca::told(now, (name, &issuer.directory), names, |id| ledger.get(id));
        let of_account = account.limited_until(now);
        let by_ca = [
            until.map(|until| Limit::of_the_ca(&format!("this account, issuer {name}"), until)),
            of_account.map(|until| Limit::of_the_ca("these names", until)),
            of_names.map(|(until, whom)| Limit::of_the_ca(&whom, until)),
        ];
        limits.extend(by_ca.into_iter().flatten());
        limits
    }

    /// What the ledger has of the last certificates for these names, and of the last try that failed.
    #[must_use]
    pub fn past(&self, observed: &Observed) -> Vec<Moment> {
        let IssuanceHistory {
            unscheduled,
            scheduled,
            failed_at,
            ..
        } = self.shared.ledger.get(observed.account);
        let of = |instants: Vec<i64>, what: &'static str| {
            let instants = instants.into_iter();
            instants.map(move |at| Moment::new(UnixTime(at), what, "ledger"))
        };
        let asked = of(
            unscheduled,
            "a certificate was ordered that no clock asked for",
        );
        let due = of(scheduled, "a certificate was ordered that was due");
        let failed = of(failed_at.into_iter().collect(), "a renewal failed");
        asked.chain(due).chain(failed).collect()
    }
}
