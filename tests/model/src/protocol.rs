//! The model: who may do what next, what each answer brings, and what must hold.
//!
//! A request is sent in one step and carried out in a later one, between which anything may happen. Its answer comes at
//! once: one that is late is the same as a next request that is.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use stateright::{Model, Property};

use crate::decide::{Core, Rolling, Standing};
use crate::election::Next;
use crate::operator::{Operator, Referred, Renewal, Rollout, Write};
use crate::planted::Planted;
use crate::settle;
use crate::world::{Holder, Leaf, MOST, Names, Number, Order, Secret, Status, Workload};

mod steps;

/// Both replicas.
const REPLICAS: [usize; 2] = [0, 1];
/// Most requests that are late at the same time; one more never arrives.
pub(crate) const STRAYS: usize = 2;

/// What may go wrong, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// A process is killed, or told to end.
    pub(crate) crashes: u8,
    /// A request has no answer: it is carried out later, or never.
    pub(crate) losses: u8,
    /// A leader lets a second pass without renewing its lease.
    pub(crate) pauses: u8,
    /// The clock of one replica is a second ahead.
    pub(crate) skews: u8,
    /// The user changes the Secret.
    pub(crate) edits: u8,
}

/// What has happened that must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bad {
    /// A request that changes something was sent although the gate was shut.
    Ungated,
    /// The key of an issued certificate is lost.
    KeyLost,
    /// A workload was restarted once more for a certificate.
    RolledTwice,
    /// A workload was patched for a certificate that the Secret does not hold.
    RolledOntoAnother,
    /// A certificate was asked for, or written, that the Secret does not want.
    Unwanted,
    /// `rolled-out` was written for a certificate that the workload does not have.
    FalseRecord,
}

/// The whole world at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) secret: Secret,
    pub(crate) workload: Workload,
    /// The order record: which order's URL and key it holds.
    pub(crate) record: Option<Number>,
    pub(crate) lease: Option<Holder>,
    pub(crate) orders: [Option<Order>; MOST],
    pub(crate) operators: [Operator; 2],
    /// Requests without an answer that may still arrive.
    pub(crate) strays: [Option<Write>; STRAYS],
    pub(crate) left: Faults,
    /// Certificates that the clock and the user have asked for.
    pub(crate) wishes: u8,
    /// Certificates that the CA has issued.
    pub(crate) issued: u8,
    /// Certificates that workloads were restarted for, and those that were written into the Secret, as bits.
    restarted: u16,
    written: u16,
    pub(crate) bad: Option<Bad>,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A second passes.
    Tick,
    /// A replica carries out the next step of the election.
    Elect(usize),
    /// The watch on the Lease brings its change.
    SeeLease(usize),
    /// A new leader reads the order records and lists the Secrets.
    Open(usize),
    /// The watch on Secrets brings the change.
    SeeSecret(usize),
    /// A renewal begins.
    Renew(usize),
    /// A rollout begins.
    Roll(usize),
    /// The request of the renewal is carried out and answered.
    Renewal(usize),
    /// The request of the rollout, likewise.
    Rollout(usize),
    /// A late request is carried out.
    Late(usize),
    /// A late request never arrives.
    Never(usize),
    /// The controller of the workload replaces the pods.
    Replace,
    /// A process starts again.
    Start(usize),
    /// A process is killed.
    Kill(usize),
    /// A leader ends, and gives the lease back.
    End(usize),
    /// The request of the renewal has no answer.
    RenewalLost(usize),
    /// The request of the rollout, likewise.
    RolloutLost(usize),
    /// A request of the election has no answer; whether it was carried out.
    ElectionLost(usize, bool),
    /// A replica's clock goes a second ahead.
    Skew(usize),
    /// The user empties the Secret.
    Wipe,
    /// The user asks for a renewal.
    RenewNow,
    /// The user asks for other names.
    OtherNames,
}

/// The protocol in a small world.
pub(crate) struct Protocol {
    pub(crate) core: Arc<Core>,
    pub(crate) faults: Faults,
    /// Whether what the workloads have is on record at first.
    pub(crate) recorded: bool,
    pub(crate) planted: Option<Planted>,
    /// Whether it is looked at each state whether all comes right from there.
    pub(crate) settles: bool,
    /// States from which all comes right.
    pub(crate) settled: Mutex<HashSet<u64>>,
}

impl Protocol {
    pub(crate) fn new(core: &Arc<Core>, faults: Faults) -> Self {
        Self {
            core: Arc::clone(core),
            faults,
            recorded: true,
            planted: None,
            settles: true,
            settled: Mutex::default(),
        }
    }

    fn is_planted(&self, fault: Planted) -> bool {
        self.planted == Some(fault)
    }
}

impl State {
    fn first(faults: Faults, recorded: bool) -> Self {
        let leaf = Some(Leaf {
            order: 0,
            names: Names::First,
        });
        let up = Operator {
            up: true,
            ..Operator::default()
        };
        Self {
            secret: Secret {
                leaf,
                names: Names::First,
                renew_now: 0,
                renewed_for: 0,
                issued: leaf,
                rolled_out: recorded.then_some(leaf),
            },
            workload: Workload {
                template: None,
                rolling: false,
                pods: leaf,
            },
            record: None,
            lease: None,
            orders: [None; MOST],
            operators: [up; 2],
            strays: [None; STRAYS],
            left: faults,
            wishes: 1,
            issued: 0,
            restarted: 0,
            written: 0,
            bad: None,
        }
    }

    /// Whether a replica may act.
    pub(crate) fn leads(&self, me: usize) -> bool {
        let operator = &self.operators[me];
        operator.up && operator.election.leads(number(me))
    }

    /// Whether nothing is left to do, and nothing under way.
    pub(crate) fn is_done(&self, core: &Core) -> bool {
        let idle = |it: &Operator| it.renewal.is_none() && it.rollout.is_none();
        self.is_renewed(core) && self.record.is_none() && self.operators.iter().all(idle)
    }

    /// Whether only the record of an order is left that nobody waited for any more.
    pub(crate) fn is_left_behind(&self, core: &Core) -> bool {
        let is_late = |order: Number| self.written & (1 << order) == 0;
        self.is_renewed(core) && self.record.is_some_and(is_late)
    }

    /// Whether the Secret holds what is asked for, and the workload has it.
    pub(crate) fn is_renewed(&self, core: &Core) -> bool {
        let has = |leaf| {
            self.secret.rolled_out == Some(Some(leaf))
                && self.workload.has(leaf)
                && self.workload.pods == Some(leaf)
        };
        !core.is_due(self.secret)
            && self.secret.leaf.is_some_and(has)
            && core.tasks(self.secret, false) == (false, false)
            && self.strays.iter().all(Option::is_none)
    }

    /// The Lease was written.
    fn outdate(&mut self, lease: Option<Holder>) {
        self.lease = lease;
        for operator in &mut self.operators {
            operator.election.outdate();
        }
    }

    /// A request has no answer: it may arrive later.
    fn stray(&mut self, write: Option<Write>) {
        if let Some(write) = write
            && let Some(free) = self.strays.iter_mut().find(|it| it.is_none())
        {
            *free = Some(write);
        }
    }

    /// What a replica does as a leader ends; what is under way may still arrive.
    fn end_term(&mut self, me: usize) {
        let operator = &mut self.operators[me];
        let renewal = operator.renewal.take().and_then(Renewal::write);
        let rollout = operator.rollout.take().and_then(Rollout::write);
        (operator.works, operator.knows_record, operator.seen) = (false, false, None);
        self.stray(renewal);
        self.stray(rollout);
    }

    /// A process ends.
    fn bury(&mut self, me: usize) {
        self.operators[me] = Operator::default();
        let former = Holder::Replica(number(me));
        if self.lease == Some(former) {
            self.lease = Some(Holder::Former);
        }
        for operator in &mut self.operators {
            operator.election.bury(number(me));
        }
    }

    /// Forgets what nobody refers to, so that its number can be given again.
    fn forget(&mut self) {
        let mut referred = Referred::default();
        referred.secret(&self.secret);
        referred.workload(&self.workload);
        if let Some(order) = self.record {
            referred.order(order);
        }
        for write in self.strays.iter().flatten() {
            referred.write(*write);
        }
        for operator in &self.operators {
            referred.operator(operator);
        }
        for (at, order) in self.orders.iter_mut().enumerate() {
            if referred.0 & (1 << at) == 0 {
                *order = None;
            }
        }
        self.restarted &= referred.0;
        self.written &= referred.0;
        self.strays.sort_by_key(Option::is_none);
    }

    fn names_of(&self, order: Number) -> Names {
        let found = self.orders[usize::from(order)];
        found.map_or(Names::First, |order| order.names)
    }

    fn status_of(&self, order: Number) -> Option<Status> {
        self.orders[usize::from(order)].map(|order| order.status)
    }

    fn set_status(&mut self, order: Number, status: Status) {
        if let Some(order) = &mut self.orders[usize::from(order)] {
            order.status = status;
        }
    }

    /// Makes an order for the names of the Secret.
    fn make_order(&mut self, names: Names) -> Option<Number> {
        let free = (1..MOST).find(|at| self.orders[*at].is_none())?;
        self.orders[free] = Some(Order {
            names,
            status: Status::Pending,
        });
        u8::try_from(free).ok()
    }
}

fn number(me: usize) -> u8 {
    u8::try_from(me).unwrap_or(u8::MAX)
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(self.faults, self.recorded)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend([Action::Tick, Action::Replace]);
        for me in REPLICAS {
            let operator = &state.operators[me];
            if !operator.up {
                actions.push(Action::Start(me));
                continue;
            }
            actions.extend([Action::Elect(me), Action::SeeLease(me)]);
            actions.extend([Action::Open(me), Action::SeeSecret(me)]);
            actions.extend([Action::Renew(me), Action::Roll(me)]);
            actions.extend([Action::Renewal(me), Action::Rollout(me)]);
            if state.left.crashes > 0 {
                actions.extend([Action::Kill(me), Action::End(me)]);
            }
            if state.left.losses > 0 {
                actions.extend([Action::RenewalLost(me), Action::RolloutLost(me)]);
                actions.extend([true, false].map(|done| Action::ElectionLost(me, done)));
            }
            if state.left.skews > 0 {
                actions.push(Action::Skew(me));
            }
        }
        for at in 0..STRAYS {
            if state.strays[at].is_some() {
                actions.extend([Action::Late(at), Action::Never(at)]);
            }
        }
        if state.left.edits > 0 {
            actions.extend([Action::Wipe, Action::RenewNow, Action::OtherNames]);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, action)?;
        (next != *state).then_some(next)
    }

    /// Nothing is looked for beyond the first thing that must not happen.
    fn within_boundary(&self, state: &State) -> bool {
        state.issued <= state.wishes + 1
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ISSUED, |_: &Self, state: &State| {
                state.issued <= state.wishes
            }),
            Property::always(GATED, |_: &Self, state: &State| {
                state.bad != Some(Bad::Ungated)
            }),
            Property::always(KEY, |_: &Self, state: &State| {
                state.bad != Some(Bad::KeyLost)
            }),
            Property::always(ONCE, |_: &Self, state: &State| {
                state.bad != Some(Bad::RolledTwice)
            }),
            Property::always(ONTO, |_: &Self, state: &State| {
                state.bad != Some(Bad::RolledOntoAnother)
            }),
            Property::always(WANTED, |_: &Self, state: &State| {
                state.bad != Some(Bad::Unwanted)
            }),
            Property::always(RECORDED, |_: &Self, state: &State| {
                state.bad != Some(Bad::FalseRecord)
            }),
            Property::always(ROLLED_OUT, |_: &Self, state: &State| {
                let named = state.secret.rolled_out.flatten();
                let held = named.filter(|leaf| state.secret.leaf == Some(*leaf));
                held.is_none_or(|leaf| state.workload.has(leaf))
            }),
            Property::always(ONE_LEADS, |model: &Self, state: &State| {
                let both = state.leads(0) && state.leads(1);
                !both || state.left.skews < model.faults.skews
            }),
            Property::always(SETTLES, settle::comes_right),
            Property::sometimes(DONE, |model: &Self, state: &State| {
                state.is_done(&model.core)
            }),
        ]
    }
}

pub(crate) const ISSUED: &str = "no certificate is issued that nothing asked for";
pub(crate) const GATED: &str = "nothing is sent by one whose gate is shut";
pub(crate) const KEY: &str = "no key of an issued certificate is lost";
pub(crate) const ONCE: &str = "no workload is rolled twice for one certificate";
pub(crate) const ONTO: &str = "no workload is rolled onto a certificate that is not in the Secret";
pub(crate) const WANTED: &str =
    "no certificate is finalized or written that the Secret does not want";
pub(crate) const RECORDED: &str = "rolled-out is written only for what the workload has";
pub(crate) const ROLLED_OUT: &str =
    "rolled-out names the Secret's certificate only when the workload has it";
pub(crate) const ONE_LEADS: &str = "while the clocks agree at most one leads";
pub(crate) const SETTLES: &str =
    "when the faults stop it is renewed and rolled, and the record is gone";
pub(crate) const DONE: &str = "it can be renewed and rolled, and the record gone";
