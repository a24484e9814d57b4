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

/// What the server says to a write.
enum Answer {
    Done,
    Made(Number),
    Refused,
}

fn number(me: usize) -> u8 {
    u8::try_from(me).unwrap_or(u8::MAX)
}

impl Protocol {
    /// The server carries a write out.
    fn execute(&self, state: &mut State, write: Write) -> Answer {
        match write {
            Write::NewOrder => match state.make_order(state.secret.names) {
                Some(order) => Answer::Made(order),
                None => Answer::Refused,
            },
            Write::Create(order) => {
                if state.record.is_some() && !self.is_planted(Planted::RecordReplaced) {
                    return Answer::Refused;
                }
                let former = state.record.replace(order);
                self.check_key(state, former);
                Answer::Done
            }
            Write::Validate(order) => {
                if state.status_of(order) != Some(Status::Pending) {
                    return Answer::Refused;
                }
                state.set_status(order, Status::Ready);
                Answer::Done
            }
            Write::Finalize(order) => {
                if state.status_of(order) != Some(Status::Ready) {
                    return Answer::Refused;
                }
                state.set_status(order, Status::Valid);
                state.issued += 1;
                self.check_key(state, Some(order));
                Answer::Done
            }
            Write::Pair(order, base) => {
                if base != state.secret && !self.is_planted(Planted::PairUnguarded) {
                    return Answer::Refused;
                }
                let names = state.names_of(order);
                let leaf = Leaf { order, names };
                let Some(written) = self.core.written(base, leaf) else {
                    return Answer::Refused;
                };
                if names != state.secret.names {
                    state.bad = state.bad.or(Some(Bad::Unwanted));
                }
                // Only what the patch names is changed.
                let given = state.secret.rolled_out;
                let with = self.is_planted(Planted::RolledOutWithThePair);
                state.secret = Secret {
                    leaf: written.leaf,
                    issued: written.issued,
                    renewed_for: written.renewed_for,
                    rolled_out: match base.rolled_out {
                        _ if with => Some(Some(leaf)),
                        None => written.rolled_out,
                        Some(_) => given,
                    },
                    ..state.secret
                };
                state.written |= 1 << order;
                Answer::Done
            }
            Write::GiveBack(order) => {
                if state.status_of(order) == Some(Status::Pending) {
                    state.set_status(order, Status::GivenUp);
                }
                Answer::Done
            }
            Write::Delete(order) => {
                let by_name = self.is_planted(Planted::RecordDeletedByName);
                if state.record == Some(order) || by_name {
                    let former = state.record.take();
                    self.check_key(state, former);
                }
                Answer::Done
            }
            Write::Patch(leaf, base) => {
                if base != state.workload {
                    return Answer::Refused;
                }
                let again = self.is_planted(Planted::TemplateIgnored);
                if state.workload.template != Some(leaf) || again {
                    if state.restarted & (1 << leaf.order) != 0 {
                        state.bad = state.bad.or(Some(Bad::RolledTwice));
                    }
                    state.restarted |= 1 << leaf.order;
                    state.workload.template = Some(leaf);
                    state.workload.rolling = true;
                }
                Answer::Done
            }
            Write::RolledOut(has, base) => {
                if base != state.secret && !self.is_planted(Planted::RolledOutUnguarded) {
                    return Answer::Refused;
                }
                if has.is_some_and(|leaf| !state.workload.has(leaf)) {
                    state.bad = state.bad.or(Some(Bad::FalseRecord));
                }
                state.secret.rolled_out = Some(has);
                Answer::Done
            }
        }
    }

    /// Notes where the key of a certificate is lost that was issued, is wanted, and was not written.
    fn check_key(&self, state: &mut State, order: Option<Number>) {
        let Some(order) = order else { return };
        let is_lost = state.status_of(order) == Some(Status::Valid)
            && state.record != Some(order)
            && state.written & (1 << order) == 0
            && state.names_of(order) == state.secret.names
            && self.core.is_due(state.secret);
        if is_lost {
            state.bad = state.bad.or(Some(Bad::KeyLost));
        }
    }

    /// Whether a replica may send a request: the gate.
    fn passes(&self, state: &mut State, me: usize, write: Option<Write>) -> bool {
        if state.leads(me) {
            return true;
        }
        if self.is_planted(Planted::GateOut) {
            if write.is_some() {
                state.bad = state.bad.or(Some(Bad::Ungated));
            }
            return true;
        }
        false
    }

    fn send_renewal(&self, state: &mut State, me: usize, request: Renewal) {
        let wants = |order| {
            let names = state.names_of(order);
            self.core.standing(state.secret, order, names) != Standing::Unwanted
        };
        if let Renewal::Finalize(order) = request
            && !wants(order)
        {
            state.bad = state.bad.or(Some(Bad::Unwanted));
        }
        let passes = self.passes(state, me, request.write());
        state.operators[me].renewal = passes.then_some(request);
    }

    fn send_rollout(&self, state: &mut State, me: usize, request: Rollout) {
        if let Rollout::Patch(leaf, _) = request
            && state.secret.leaf != Some(leaf)
        {
            state.bad = state.bad.or(Some(Bad::RolledOntoAnother));
        }
        let passes = self.passes(state, me, request.write());
        state.operators[me].rollout = passes.then_some(request);
    }

    fn standing(&self, state: &State, order: Number) -> Standing {
        let standing = self
            .core
            .standing(state.secret, order, state.names_of(order));
        match standing {
            Standing::Undue if self.is_planted(Planted::DueForgotten) => Standing::Wanted,
            other => other,
        }
    }

    /// The request of a renewal is carried out, and its answer decides about the next.
    fn renewal(&self, state: &mut State, me: usize) -> Option<()> {
        let request = state.operators[me].renewal.take()?;
        let answer = request.write().map(|write| self.execute(state, write));
        let refused = matches!(answer, Some(Answer::Refused));
        let next = match request {
            Renewal::GetRecord => {
                state.operators[me].knows_record = state.record.is_some();
                Renewal::GetSecret(state.record)
            }
            Renewal::GetSecret(None) => {
                if !self.core.is_due(state.secret) {
                    return Some(());
                }
                Renewal::NewOrder
            }
            Renewal::GetSecret(Some(order)) => match self.standing(state, order) {
                Standing::Written => Renewal::Delete(order),
                Standing::Unwanted => Renewal::GiveBack(order, true),
                standing => Renewal::GetOrder(order, standing == Standing::Wanted),
            },
            Renewal::NewOrder => match answer {
                Some(Answer::Made(order)) if self.is_planted(Planted::RecordTooLate) => {
                    Renewal::Validate(order)
                }
                Some(Answer::Made(order)) => Renewal::Create(order),
                _ => return Some(()),
            },
            Renewal::Create(order) => {
                state.operators[me].knows_record = true;
                match state.status_of(order) {
                    _ if refused => Renewal::GiveBack(order, false),
                    Some(Status::Valid) => Renewal::LookToWrite(order),
                    _ => Renewal::Validate(order),
                }
            }
            Renewal::GetOrder(order, is_due) => match state.status_of(order) {
                Some(Status::Pending | Status::Ready) if !is_due => Renewal::GiveBack(order, true),
                Some(Status::Pending) => Renewal::Validate(order),
                Some(Status::Ready) => Renewal::LookToFinalize(order),
                Some(Status::Valid) => Renewal::LookToWrite(order),
                Some(Status::GivenUp) | None => Renewal::Delete(order),
            },
            Renewal::Validate(_) | Renewal::Finalize(_) | Renewal::Write(..) if refused => {
                return Some(());
            }
            Renewal::Validate(order) => Renewal::LookToFinalize(order),
            Renewal::LookToFinalize(order) => match self.standing(state, order) {
                _ if self.is_planted(Planted::WishForgotten) => Renewal::Finalize(order),
                Standing::Wanted => Renewal::Finalize(order),
                _ => Renewal::GiveBack(order, true),
            },
            Renewal::Finalize(order) if self.is_planted(Planted::RecordTooLate) => {
                Renewal::Create(order)
            }
            Renewal::Finalize(order) if self.is_planted(Planted::RecordDeletedEarly) => {
                Renewal::Delete(order)
            }
            Renewal::Finalize(order) => Renewal::LookToWrite(order),
            Renewal::LookToWrite(order) => match self.standing(state, order) {
                Standing::Unwanted if !self.is_planted(Planted::WishForgotten) => {
                    Renewal::GiveBack(order, true)
                }
                _ => Renewal::Write(order, state.secret),
            },
            Renewal::Write(..) if self.is_planted(Planted::RecordLeft) => {
                state.operators[me].knows_record = false;
                return Some(());
            }
            Renewal::Write(order, _) => Renewal::Delete(order),
            Renewal::GiveBack(order, true) => Renewal::Delete(order),
            Renewal::GiveBack(_, false) => return Some(()),
            Renewal::Delete(order) => {
                state.operators[me].knows_record = false;
                let early = self.is_planted(Planted::RecordDeletedEarly);
                if early && state.status_of(order) == Some(Status::Valid) {
                    Renewal::LookToWrite(order)
                } else {
                    return Some(());
                }
            }
        };
        self.send_renewal(state, me, next);
        Some(())
    }

    /// The request of a rollout, likewise.
    fn rollout(&self, state: &mut State, me: usize) -> Option<()> {
        let request = state.operators[me].rollout?;
        if let Rollout::Wait(leaf) = request {
            // Until its workload is through, or it is superseded.
            let carries = state.workload.template == Some(leaf);
            let through = carries && self.core.is_through(state.workload);
            if !through && carries && state.secret.leaf == Some(leaf) {
                return None;
            }
        }
        state.operators[me].rollout = None;
        let answer = request.write().map(|write| self.execute(state, write));
        let refused = matches!(answer, Some(Answer::Refused));
        let next = match request {
            Rollout::Plan => {
                let seen = state.operators[me].seen;
                let unrecorded = seen.filter(|seen| seen.rolled_out.is_none());
                match self.core.rolling(state.secret, unrecorded, state.workload) {
                    Rolling::Not => return Some(()),
                    Rolling::Record(has) => {
                        Rollout::Record(has, unrecorded.unwrap_or(state.secret), false)
                    }
                    Rolling::Patch(leaf) => Rollout::Patch(leaf, state.workload),
                    Rolling::Wait(leaf) | Rolling::Conclude(leaf)
                        if self.is_planted(Planted::TemplateIgnored) =>
                    {
                        Rollout::Patch(leaf, state.workload)
                    }
                    Rolling::Wait(leaf) => Rollout::Wait(leaf),
                    Rolling::Conclude(leaf) => Rollout::Record(Some(leaf), state.secret, true),
                }
            }
            Rollout::Patch(leaf, _) if refused && self.is_planted(Planted::LookReused) => {
                Rollout::Patch(leaf, state.workload)
            }
            Rollout::Patch(..) if refused => Rollout::Plan,
            Rollout::Patch(leaf, _) if self.is_planted(Planted::RolledOutEarly) => {
                Rollout::Record(Some(leaf), state.secret, true)
            }
            Rollout::Patch(leaf, _) => Rollout::Wait(leaf),
            Rollout::Wait(leaf) if state.workload.template != Some(leaf) => Rollout::Plan,
            Rollout::Wait(leaf) if self.core.is_through(state.workload) => {
                if self.is_planted(Planted::RolledOutNever) {
                    return Some(());
                }
                Rollout::Record(Some(leaf), state.secret, true)
            }
            Rollout::Wait(_) => return Some(()),
            Rollout::Record(has, _, true) if refused => Rollout::Record(has, state.secret, true),
            Rollout::Record(..) => return Some(()),
        };
        self.send_rollout(state, me, next);
        Some(())
    }

    /// The next step of the election; `answered` says whether its answer arrives, `done` whether it is carried out.
    fn elect(&self, state: &mut State, me: usize, answered: bool, done: bool) -> Option<()> {
        let holder = Holder::Replica(number(me));
        let mut candidate = state.operators[me].election;
        match candidate.next(number(me)) {
            Next::Nothing => return None,
            Next::Look => {
                if answered {
                    candidate.saw(number(me), state.lease);
                }
            }
            Next::Create | Next::Claim => {
                let first = state.lease.is_none();
                let current = candidate.is_current() && !first;
                let creates = candidate.next(number(me)) == Next::Create;
                let guarded = !self.is_planted(Planted::ClaimUnguarded);
                let granted = !guarded || if creates { first } else { current };
                if granted && done {
                    state.outdate(Some(holder));
                    candidate.outdate();
                }
                if answered && (granted || self.is_planted(Planted::ClaimBelieved)) {
                    candidate.claimed(number(me));
                } else if answered {
                    candidate.refused();
                }
            }
        }
        if !answered {
            candidate.failed();
        }
        state.operators[me].election = candidate;
        Some(())
    }

    /// Ends the terms of those who no longer lead.
    fn end_terms(&self, state: &mut State) {
        for me in REPLICAS {
            if state.operators[me].works && !state.leads(me) && !self.is_planted(Planted::GateOut) {
                state.end_term(me);
            }
        }
    }

    fn edit(state: &mut State, change: impl FnOnce(&mut Secret)) -> Option<()> {
        let before = state.secret;
        change(&mut state.secret);
        if state.left.edits == 0 || before == state.secret {
            return None;
        }
        state.left.edits -= 1;
        state.wishes += 1;
        Some(())
    }

    /// Carries out an action; `None` where it cannot happen.
    pub(crate) fn act(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Tick => {
                let led = REPLICAS.map(|me| state.leads(me));
                for me in REPLICAS {
                    state.operators[me].election.age(number(me));
                }
                if REPLICAS.iter().any(|me| led[*me] && !state.leads(*me)) {
                    state.left.pauses = state.left.pauses.checked_sub(1)?;
                }
            }
            Action::Elect(me) => {
                state.operators[me].up.then_some(())?;
                self.elect(state, me, true, true)?;
            }
            Action::SeeLease(me) => {
                let operator = &state.operators[me];
                let waits = operator.election.next(number(me)) == Next::Nothing;
                let watches = operator.up && operator.election.is_behind() && waits;
                (watches && !state.leads(me)).then_some(())?;
                let lease = state.lease;
                state.operators[me].election.saw(number(me), lease);
            }
            Action::Open(me) => {
                let unread = self.is_planted(Planted::RecordsUnread);
                (state.leads(me) && !state.operators[me].works).then_some(())?;
                let operator = &mut state.operators[me];
                operator.works = true;
                operator.knows_record = state.record.is_some() && !unread;
                operator.seen = Some(state.secret);
            }
            Action::SeeSecret(me) => {
                let operator = &mut state.operators[me];
                (operator.works && operator.seen != Some(state.secret)).then_some(())?;
                operator.seen = Some(state.secret);
            }
            Action::Renew(me) => {
                let operator = state.operators[me];
                let (due, _) = self.core.tasks(operator.seen?, operator.knows_record);
                (operator.works && operator.renewal.is_none() && due).then_some(())?;
                let request = if operator.knows_record {
                    Renewal::GetRecord
                } else {
                    Renewal::GetSecret(None)
                };
                self.send_renewal(state, me, request);
            }
            Action::Roll(me) => {
                let operator = state.operators[me];
                let (_, due) = self.core.tasks(operator.seen?, operator.knows_record);
                (operator.works && operator.rollout.is_none() && due).then_some(())?;
                self.send_rollout(state, me, Rollout::Plan);
            }
            Action::Renewal(me) => self.renewal(state, me)?,
            Action::Rollout(me) => self.rollout(state, me)?,
            Action::Late(at) => {
                let write = state.strays[at].take()?;
                self.execute(state, write);
            }
            Action::Never(at) => drop(state.strays[at].take()?),
            // A server does not start without a certificate: its pods wait until there is one.
            Action::Replace => {
                (state.workload.rolling && state.secret.leaf.is_some()).then_some(())?;
                state.workload.rolling = false;
                state.workload.pods = state.secret.leaf;
            }
            Action::Start(me) => {
                (!state.operators[me].up).then_some(())?;
                state.operators[me].up = true;
            }
            Action::Kill(me) => {
                state.operators[me].up.then_some(())?;
                state.left.crashes = state.left.crashes.checked_sub(1)?;
                state.end_term(me);
                state.bury(me);
            }
            Action::End(me) => {
                let operator = state.operators[me];
                let idle = operator.renewal.is_none() && operator.rollout.is_none();
                (state.leads(me) && idle).then_some(())?;
                state.left.crashes = state.left.crashes.checked_sub(1)?;
                self.give_back(state, me);
            }
            Action::RenewalLost(me) => {
                let request = state.operators[me].renewal.take()?;
                state.left.losses = state.left.losses.checked_sub(1)?;
                if let Renewal::Create(_) = request {
                    state.operators[me].knows_record = true;
                }
                state.stray(request.write());
            }
            Action::RolloutLost(me) => {
                let request = state.operators[me].rollout.take()?;
                state.left.losses = state.left.losses.checked_sub(1)?;
                state.stray(request.write());
                if let Rollout::Patch(..) = request {
                    self.send_rollout(state, me, Rollout::Plan);
                }
            }
            Action::ElectionLost(me, done) => {
                state.operators[me].up.then_some(())?;
                state.left.losses = state.left.losses.checked_sub(1)?;
                self.elect(state, me, false, done)?;
            }
            Action::Skew(me) => {
                state.operators[me].up.then_some(())?;
                state.left.skews = state.left.skews.checked_sub(1)?;
                state.operators[me].election.age(number(me));
            }
            Action::Wipe => Self::edit(state, |it| it.leaf = None)?,
            Action::RenewNow => Self::edit(state, |it| it.renew_now += 1)?,
            Action::OtherNames => Self::edit(state, |it| it.names = Names::Other)?,
        }
        self.end_terms(state);
        state.forget();
        Some(())
    }

    /// A leader with nothing under way ends, and another process takes its place.
    pub(crate) fn give_back(&self, state: &mut State, me: usize) {
        state.end_term(me);
        state.outdate(Some(Holder::Nobody));
        state.bury(me);
        state.operators[me].up = true;
    }
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
