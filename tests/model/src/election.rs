//! One replica's part in the election, as ages in place of instants, so that there are few of them. The core's
//! [`Election`] is made from it again for each question.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use cert_renew_core::election::{Election, LeaseRecord, Move, Times};
use cert_renew_core::time::BootTime;

use crate::world::Holder;

thread_local! {
    /// The answers of the core's election, by state.
    static ANSWERS: RefCell<HashMap<(Candidate, u8), (Next, bool)>> = RefCell::default();
}

/// The present instant: any will do.
const NOW: BootTime = BootTime(Duration::from_secs(100));
/// The longest age that is told from longer ones: the duration of the lease.
const OLDEST: u8 = 3;

/// What a replica knows of the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Candidate {
    /// The age of its last renewal, if it led since.
    renewed: Option<u8>,
    /// The lease as it was seen last.
    seen: Option<Seen>,
    /// What it knows counts; otherwise it looks first.
    knows: bool,
    /// No request before the next second.
    rests: bool,
    /// No claim before the next second.
    holds: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Seen {
    holder: Holder,
    /// Whether it is the present version.
    current: bool,
    /// Since when it has been unchanged, as far as seen.
    age: u8,
}

/// What the replica does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Look,
    Create,
    Claim,
    Nothing,
}

/// The lease lasts three seconds, must be renewed within two, and is renewed after each.
fn times() -> Times {
    let seconds = Duration::from_secs;
    Times::new(seconds(3), seconds(2), seconds(1)).expect("they fit together")
}

fn ago(age: u8) -> BootTime {
    BootTime(NOW.0 - Duration::from_secs(age.into()))
}

fn record(version: &str, holder: Holder) -> LeaseRecord {
    LeaseRecord {
        uid: "uid".into(),
        version: version.into(),
        holder: match holder {
            Holder::Nobody => None,
            Holder::Replica(number) => Some(number.to_string()),
            Holder::Former => Some("former".into()),
        },
        lasts: times().lease(),
        transitions: 0,
    }
}

impl Candidate {
    /// The core's election in this state.
    fn election(self, me: u8) -> Election {
        let mut election = Election::new(me.to_string(), times());
        if self.holds {
            election.refused(NOW);
        }
        if let Some(age) = self.renewed {
            election.claimed(ago(age), record("1", Holder::Replica(me)));
        }
        match self.seen {
            Some(seen) if self.renewed == Some(seen.age) => {}
            Some(seen) => election.saw(ago(seen.age), Some(record("2", seen.holder))),
            None if self.knows => election.saw(NOW, None),
            None => {}
        }
        if self.rests {
            election.failed(NOW);
        } else if !self.knows {
            election.failed(ago(1));
        }
        election
    }

    /// What it does next.
    pub(crate) fn next(self, me: u8) -> Next {
        self.answers(me).0
    }

    /// Whether its gate is open.
    pub(crate) fn leads(self, me: u8) -> bool {
        self.renewed.is_some() && self.answers(me).1
    }

    /// What the core's election says of this state, which is asked once.
    fn answers(self, me: u8) -> (Next, bool) {
        ANSWERS.with_borrow_mut(|answers| {
            *answers.entry((self, me)).or_insert_with(|| {
                let election = self.election(me);
                let next = match election.next(NOW) {
                    Move::Look => Next::Look,
                    Move::Create => Next::Create,
                    Move::Claim(_) => Next::Claim,
                    Move::Wait(_) | Move::Rest(_) => Next::Nothing,
                };
                (next, election.leads_until(NOW).is_some())
            })
        })
    }

    /// Whether it knows the present version of the lease.
    pub(crate) fn is_current(self) -> bool {
        self.seen.is_some_and(|seen| seen.current)
    }

    /// Whether it watches a lease that has changed.
    pub(crate) fn is_behind(self) -> bool {
        self.knows && self.seen.is_some_and(|seen| !seen.current)
    }

    /// It reads the lease, or the watch brings it.
    pub(crate) fn saw(&mut self, me: u8, lease: Option<Holder>) {
        self.knows = true;
        if lease != Some(Holder::Replica(me)) {
            self.renewed = None;
        }
        let age = self.seen.filter(|seen| seen.current).map_or(0, |it| it.age);
        self.seen = lease.map(|holder| Seen {
            holder,
            current: true,
            age,
        });
    }

    /// Its claim is answered: it leads.
    pub(crate) fn claimed(&mut self, me: u8) {
        self.knows = true;
        self.renewed = Some(0);
        self.seen = Some(Seen {
            holder: Holder::Replica(me),
            current: true,
            age: 0,
        });
    }

    /// Its claim is refused: the lease has changed.
    pub(crate) fn refused(&mut self) {
        (self.knows, self.holds) = (false, true);
    }

    /// Its request has no answer.
    pub(crate) fn failed(&mut self) {
        (self.knows, self.rests) = (false, true);
    }

    /// The lease was written by somebody.
    pub(crate) fn outdate(&mut self) {
        if let Some(seen) = &mut self.seen {
            seen.current = false;
        }
    }

    /// A replica has ended.
    pub(crate) fn bury(&mut self, former: u8) {
        if let Some(seen) = &mut self.seen
            && seen.holder == Holder::Replica(former)
        {
            seen.holder = Holder::Former;
        }
    }

    /// A second passes.
    pub(crate) fn age(&mut self, me: u8) {
        (self.rests, self.holds) = (false, false);
        if let Some(seen) = &mut self.seen {
            seen.age = (seen.age + 1).min(OLDEST);
        }
        self.renewed = self.renewed.map(|age| age + 1);
        // What is over is not told from what never was.
        if !self.leads(me) {
            self.renewed = None;
        }
    }
}
