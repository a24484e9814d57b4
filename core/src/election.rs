//! Leader election: decides the next request about the Lease, from what the API server has said of it.
//!
//! ```text
//!             saw free, or silent for its whole duration        answered
//! standby ──────────────────────────────────────────► claim ─────────────► leader ──every retry period──► claim
//!    ▲                                                  │ somebody was faster      │ renew deadline without an answer,
//!    └──────────────────────────────────────────────────┴──────────────────────────┘ or another holder is seen
//! ```
//! Pure. No clock is compared with another machine's: a standby counts from when it saw the holder's last renewal, the
//! holder from when it sent it, which was earlier. The holder stops before the standby's wait ends. Every claim carries
//! the version that it is based on, so of two only one succeeds.

use std::time::Duration;

use thiserror::Error;

use crate::time::BootTime;

/// The three durations of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    lease: Duration,
    renew_deadline: Duration,
    retry_period: Duration,
}

/// Why durations do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadTimes {
    /// The Lease counts in seconds.
    #[error("the lease duration: expected whole seconds, one at least")]
    Duration,
    /// A leader that cannot renew must stop before another one begins.
    #[error("the renew deadline: expected less than the lease duration")]
    Deadline,
    /// One lost answer must not end the leadership.
    #[error("the retry period: expected more than zero, and half of the renew deadline at most")]
    Retry,
}

impl Times {
    /// The durations, if they fit together.
    ///
    /// # Errors
    /// Names the duration that does not fit.
    pub fn new(
        lease: Duration,
        renew_deadline: Duration,
        retry_period: Duration,
    ) -> Result<Self, BadTimes> {
        if lease.as_secs() == 0
            || lease.subsec_nanos() != 0
            || i32::try_from(lease.as_secs()).is_err()
        {
            return Err(BadTimes::Duration);
        }
        if renew_deadline >= lease {
            return Err(BadTimes::Deadline);
        }
        if retry_period.is_zero() || retry_period * 2 > renew_deadline {
            return Err(BadTimes::Retry);
        }
        Ok(Self {
            lease,
            renew_deadline,
            retry_period,
        })
    }

    /// How long the lease holds after each renewal.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Longest wait for one request: a second one fits in before the deadline.
    #[must_use]
    pub fn request(&self) -> Duration {
        self.renew_deadline / 2
    }
}

/// The content of a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The object's uid.
    pub uid: String,
    /// The object's resourceVersion.
    pub version: String,
    /// Who holds it; None once it was released.
    pub holder: Option<String>,
    /// How long it holds after a renewal, according to its holder.
    pub lasts: Duration,
    /// How often the holder has changed.
    pub transitions: i32,
}

/// A guarded write of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseWrite {
    /// The object that it changes.
    pub uid: String,
    /// The version that it is based on.
    pub version: String,
    /// The number of holder changes to write.
    pub transitions: i32,
    /// Whether another replica holds it until now.
    pub takes_over: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Read the Lease.
    Look,
    /// Create it: there is none.
    Create,
    /// Write it.
    Claim(LeaseWrite),
    /// Send nothing for this time, unless the Lease changes.
    Wait(Duration),
    /// Send nothing for this time: the last request failed.
    Rest(Duration),
}

/// The state of one replica in the election.
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    times: Times,
    /// The last known Lease, and since when it has been unchanged; None: there is no Lease.
    seen: Option<(LeaseRecord, BootTime)>,
    /// The last known Lease may be outdated.
    stale: bool,
    /// The latest resourceVersion ever seen: versions count the writes of the whole cluster.
    latest: u64,
    /// When the last answered renewal was sent.
    renewed: Option<BootTime>,
    /// No request before this instant.
    not_before: BootTime,
    /// No claim before this instant.
    claim_not_before: BootTime,
}

impl Election {
    /// A replica that knows nothing of the Lease yet.
    #[must_use]
    pub fn new(identity: String, times: Times) -> Self {
        Self {
            identity,
            times,
            seen: None,
            stale: true,
            latest: 0,
            renewed: None,
            not_before: BootTime::default(),
            claim_not_before: BootTime::default(),
        }
    }

    /// The holder identity that this replica writes.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The durations.
    #[must_use]
    pub fn times(&self) -> &Times {
        &self.times
    }

    /// Who holds the lease, as far as known.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        self.seen.as_ref()?.0.holder.as_deref()
    }

    /// The last version of the Lease that was seen.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.seen
            .as_ref()
            .map(|(record, _)| record.version.as_str())
    }

    /// Until when this replica may act; None if it may not.
    #[must_use]
    pub fn leads_until(&self, now: BootTime) -> Option<BootTime> {
        let until = self.renewed? + self.times.renew_deadline;
        (now < until).then_some(until)
    }

    /// The next step.
    #[must_use]
    pub fn next(&self, now: BootTime) -> Move {
        if now < self.not_before {
            return Move::Rest(self.not_before.since(now));
        }
        if self.stale {
            return Move::Look;
        }
        let due = match &self.seen {
            None => now,
            Some((record, since)) => match record.holder.as_deref() {
                None => now,
                Some(holder) if holder == self.identity => self
                    .renewed
                    .map_or(now, |sent| sent + self.times.retry_period),
                Some(_) => *since + record.lasts,
            },
        };
        let due = due.max(self.claim_not_before);
        if now < due {
            return Move::Wait(due.since(now));
        }
        let Some((record, _)) = &self.seen else {
            return Move::Create;
        };
        let takes_over = record.holder.as_ref() != Some(&self.identity);
        Move::Claim(LeaseWrite {
            uid: record.uid.clone(),
            version: record.version.clone(),
            transitions: record.transitions.saturating_add(takes_over.into()),
            takes_over,
        })
    }

    /// Records a version of the Lease. True if a later one was seen before: the cluster state went back in time, as
    /// after a restore of etcd. A watch that continues would then miss everything until the versions have caught up.
    pub fn is_past(&mut self, version: &str) -> bool {
        // Opaque by contract, but a number in every etcd; any other version is accepted.
        let Ok(version) = version.parse() else {
            return false;
        };
        let before = std::mem::replace(&mut self.latest, version);
        version < before
    }

    /// The Lease was read, or the watch sent it. None: there is none.
    pub fn saw(&mut self, now: BootTime, record: Option<LeaseRecord>) {
        self.stale = false;
        let holder = record.as_ref().and_then(|it| it.holder.as_ref());
        if holder != Some(&self.identity) {
            self.renewed = None;
        }
        let known = self.seen.as_ref().map(|(known, _)| known);
        if known != record.as_ref() {
            self.seen = record.map(|record| (record, now));
        }
    }

    /// The claim that was sent at `sent` succeeded; `record` is the Lease now.
    pub fn claimed(&mut self, sent: BootTime, record: LeaseRecord) {
        self.stale = false;
        self.renewed = Some(sent);
        self.seen = Some((record, sent));
    }

    /// A claim failed because the Lease was modified concurrently.
    pub fn refused(&mut self, sent: BootTime) {
        self.stale = true;
        self.claim_not_before = sent + self.times.retry_period;
    }

    /// The request of `sent` brought no useful answer; the API server may have executed it.
    pub fn failed(&mut self, sent: BootTime) {
        self.stale = true;
        self.not_before = sent + self.times.retry_period;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime(Duration::from_secs(seconds))
    }

    fn times() -> Times {
        let seconds = Duration::from_secs;
        Times::new(seconds(15), seconds(10), seconds(2)).unwrap()
    }

    fn record(version: u32, holder: Option<&str>) -> LeaseRecord {
        LeaseRecord {
            uid: "uid".into(),
            version: version.to_string(),
            holder: holder.map(Into::into),
            lasts: Duration::from_secs(15),
            transitions: 3,
        }
    }

    fn claim(version: u32, transitions: i32) -> Move {
        Move::Claim(LeaseWrite {
            uid: "uid".into(),
            version: version.to_string(),
            transitions,
            takes_over: transitions > 3,
        })
    }

    fn wait(seconds: u64) -> Move {
        Move::Wait(Duration::from_secs(seconds))
    }

    /// A leader since its claim of second 100.
    fn leader() -> Election {
        let mut election = Election::new("us".into(), times());
        election.saw(at(100), Some(record(1, None)));
        election.claimed(at(100), record(2, Some("us")));
        election
    }

    #[test]
    fn a_lease_is_made_where_there_is_none_and_taken_where_it_is_free() {
        let mut election = Election::new("us".into(), times());
        assert_eq!(election.next(at(100)), Move::Look);
        election.saw(at(100), None);
        assert_eq!(election.next(at(100)), Move::Create);
        election.saw(at(101), Some(record(1, None)));
        assert_eq!(election.next(at(101)), claim(1, 4));
        assert_eq!(election.leads_until(at(101)), None);
    }

    #[test]
    fn another_ones_lease_is_taken_when_it_was_silent_for_its_whole_duration() {
        let mut election = Election::new("us".into(), times());
        election.saw(at(100), Some(record(1, Some("other"))));
        assert_eq!(election.next(at(100)), wait(15));
        election.saw(at(110), Some(record(2, Some("other"))));
        // Reading the same version again is no renewal.
        election.saw(at(120), Some(record(2, Some("other"))));
        assert_eq!(election.next(at(124)), wait(1));
        assert_eq!(election.next(at(125)), claim(2, 4));
        // Released: claimed at once.
        election.saw(at(111), Some(record(3, None)));
        assert_eq!(election.next(at(111)), claim(3, 4));
    }

    #[test]
    fn a_leader_renews_and_counts_from_when_it_sent() {
        let mut election = leader();
        assert_eq!(election.leads_until(at(100)), Some(at(110)));
        assert_eq!(election.next(at(101)), wait(1));
        assert_eq!(election.next(at(102)), claim(2, 3));
        // A late answer: the deadline counts from the request.
        election.claimed(at(102), record(3, Some("us")));
        assert_eq!(election.leads_until(at(111)), Some(at(112)));
        assert_eq!(election.leads_until(at(112)), None);
    }

    #[test]
    fn a_leader_without_answers_stops_before_another_one_may_begin() {
        let mut election = leader();
        for sent in [102, 104, 106, 108] {
            election.failed(at(sent));
            let rest = Move::Rest(Duration::from_secs(2));
            assert_eq!(election.next(at(sent)), rest);
            assert_eq!(election.next(at(sent + 2)), Move::Look);
        }
        assert!(election.leads_until(at(109)).is_some());
        assert_eq!(election.leads_until(at(110)), None);
        // A standby has seen the renewal of second 100 no earlier than second 100.
        let mut standby = Election::new("them".into(), times());
        standby.saw(at(100), Some(record(2, Some("us"))));
        assert_eq!(standby.next(at(114)), wait(1));
    }

    #[test]
    fn whoever_was_stopped_believes_nothing_that_was_before() {
        let mut election = leader();
        assert_eq!(election.leads_until(at(4_000)), None);
        // Its claim carries the version that it knows.
        assert_eq!(election.next(at(4_000)), claim(2, 3));
        election.refused(at(4_000));
        assert_eq!(election.next(at(4_000)), Move::Look);
        election.saw(at(4_000), Some(record(9, Some("other"))));
        assert_eq!(election.next(at(4_000)), wait(15));
        assert_eq!(election.leads_until(at(4_000)), None);
    }

    #[test]
    fn a_leader_that_sees_another_holder_stops_at_once() {
        let mut election = leader();
        election.saw(at(101), Some(record(3, Some("other"))));
        assert_eq!(election.leads_until(at(101)), None);
        let mut election = leader();
        election.saw(at(101), None);
        assert_eq!(election.leads_until(at(101)), None);
    }

    #[test]
    fn an_edit_by_somebody_else_costs_nothing_and_refusals_make_no_hot_loop() {
        let mut election = leader();
        election.refused(at(102));
        assert_eq!(election.next(at(102)), Move::Look);
        election.saw(at(102), Some(record(7, Some("us"))));
        assert_eq!(election.leads_until(at(102)), Some(at(110)));
        assert_eq!(election.next(at(102)), wait(2));
        assert_eq!(election.next(at(104)), claim(7, 3));
    }

    #[test]
    fn a_past_that_comes_back_is_noticed_once() {
        let mut election = Election::new("us".into(), times());
        for (version, past) in [
            ("7", false),
            ("7", false),
            ("900", false),
            ("x", false),
            ("300", true),
            ("301", false),
        ] {
            assert_eq!(election.is_past(version), past, "{version}");
        }
    }

    #[test]
    fn durations_have_to_fit_together() {
        let millis = Duration::from_millis;
        for (lease, deadline, retry, expected) in [
            (15_000, 10_000, 2_000, None),
            (2_000, 1_500, 500, None),
            (1_500, 1_000, 100, Some(BadTimes::Duration)),
            (0, 0, 0, Some(BadTimes::Duration)),
            (10_000, 10_000, 2_000, Some(BadTimes::Deadline)),
            (15_000, 10_000, 5_001, Some(BadTimes::Retry)),
            (15_000, 10_000, 0, Some(BadTimes::Retry)),
        ] {
            let times = Times::new(millis(lease), millis(deadline), millis(retry));
            assert_eq!(times.err(), expected, "{lease} {deadline} {retry}");
        }
    }
}
