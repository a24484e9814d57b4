//! The steps: what a request does to the world, and what a replica does next.

use super::*;

/// What the server says to a write.
enum Answer {
    Done,
    Made(Number),
    Refused,
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
            // The Secret may have its pair already, and ask for other names by now: that is not written once more.
            Renewal::LookToWrite(order) => {
                let wants = self.core.still_wants(state.secret, state.names_of(order));
                if wants || self.is_planted(Planted::WishForgotten) {
                    Renewal::Write(order, state.secret)
                } else {
                    Renewal::GiveBack(order, true)
                }
            }
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
                    Rolling::Conclude(_) if self.is_planted(Planted::RolledOutNever) => {
                        return Some(());
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
