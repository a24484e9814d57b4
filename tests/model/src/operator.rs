//! One replica: its part in the election, and as a leader the tasks of the Secret, each with one request under way.

use crate::election::Candidate;
use crate::world::{Leaf, Number, Secret, Workload};

/// One replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Operator {
    /// Whether its process runs.
    pub(crate) up: bool,
    pub(crate) election: Candidate,
    /// Whether it has read what former leaders left, and begins what is due.
    pub(crate) works: bool,
    /// Whether it knows of an order record (`running_orders`).
    pub(crate) knows_record: bool,
    /// The Secret as the watch has brought it last.
    pub(crate) seen: Option<Secret>,
    /// The renewal, if one runs: its request under way.
    pub(crate) renewal: Option<Renewal>,
    /// The rollout, likewise.
    pub(crate) rollout: Option<Rollout>,
}

/// A request of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Renewal {
    /// The record of the Secret's order is read.
    GetRecord,
    /// The Secret is read, with this record in hand.
    GetSecret(Option<Number>),
    /// An order is made.
    NewOrder,
    /// The order record is created.
    Create(Number),
    /// The order of the record is read; whether the Secret is due.
    GetOrder(Number, bool),
    /// The CA is told to validate.
    Validate(Number),
    /// The Secret is read again before finalize.
    LookToFinalize(Number),
    Finalize(Number),
    /// The Secret is read again before the write.
    LookToWrite(Number),
    /// The pair is written onto this version.
    Write(Number, Secret),
    /// The order is given back to the CA; whether its record goes too.
    GiveBack(Number, bool),
    /// The record is deleted.
    Delete(Number),
}

/// A request of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rollout {
    /// Secret and workloads are read.
    Plan,
    /// The pod template is patched in this version.
    Patch(Leaf, Workload),
    /// The workload is watched.
    Wait(Leaf),
    /// `rolled-out` is written onto this version. A conflict is tried again if workloads were rolled.
    Record(Option<Leaf>, Secret, bool),
}

/// A request that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Write {
    NewOrder,
    Create(Number),
    Validate(Number),
    Finalize(Number),
    Pair(Number, Secret),
    GiveBack(Number),
    Delete(Number),
    Patch(Leaf, Workload),
    RolledOut(Option<Leaf>, Secret),
}

impl Renewal {
    /// What the request changes.
    pub(crate) fn write(self) -> Option<Write> {
        Some(match self {
            Self::NewOrder => Write::NewOrder,
            Self::Create(order) => Write::Create(order),
            Self::Validate(order) => Write::Validate(order),
            Self::Finalize(order) => Write::Finalize(order),
            Self::Write(order, base) => Write::Pair(order, base),
            Self::GiveBack(order, _) => Write::GiveBack(order),
            Self::Delete(order) => Write::Delete(order),
            Self::GetRecord
            | Self::GetSecret(_)
            | Self::GetOrder(..)
            | Self::LookToFinalize(_)
            | Self::LookToWrite(_) => return None,
        })
    }

    /// The order that it is about.
    pub(crate) fn order(self) -> Option<Number> {
        match self {
            Self::GetSecret(order) => order,
            Self::Create(order)
            | Self::GetOrder(order, _)
            | Self::Validate(order)
            | Self::LookToFinalize(order)
            | Self::Finalize(order)
            | Self::LookToWrite(order)
            | Self::Write(order, _)
            | Self::GiveBack(order, _)
            | Self::Delete(order) => Some(order),
            Self::GetRecord | Self::NewOrder => None,
        }
    }
}

impl Rollout {
    /// What the request changes.
    pub(crate) fn write(self) -> Option<Write> {
        match self {
            Self::Patch(leaf, base) => Some(Write::Patch(leaf, base)),
            Self::Record(has, base, _) => Some(Write::RolledOut(has, base)),
            Self::Plan | Self::Wait(_) => None,
        }
    }
}

/// The numbers that something refers to, as bits.
#[derive(Clone, Copy, Default)]
pub(crate) struct Referred(pub(crate) u16);

impl Referred {
    pub(crate) fn order(&mut self, order: Number) {
        self.0 |= 1 << order;
    }

    pub(crate) fn leaf(&mut self, leaf: Option<Leaf>) {
        if let Some(leaf) = leaf {
            self.order(leaf.order);
        }
    }

    pub(crate) fn secret(&mut self, secret: &Secret) {
        self.leaf(secret.leaf);
        self.leaf(secret.issued);
        self.leaf(secret.rolled_out.flatten());
    }

    pub(crate) fn workload(&mut self, workload: &Workload) {
        self.leaf(workload.template);
        self.leaf(workload.pods);
    }

    pub(crate) fn write(&mut self, write: Write) {
        match write {
            Write::NewOrder => {}
            Write::Create(order)
            | Write::Validate(order)
            | Write::Finalize(order)
            | Write::GiveBack(order)
            | Write::Delete(order) => self.order(order),
            Write::Pair(order, base) => {
                self.order(order);
                self.secret(&base);
            }
            Write::Patch(leaf, base) => {
                self.leaf(Some(leaf));
                self.workload(&base);
            }
            Write::RolledOut(has, base) => {
                self.leaf(has);
                self.secret(&base);
            }
        }
    }

    pub(crate) fn operator(&mut self, operator: &Operator) {
        if let Some(seen) = &operator.seen {
            self.secret(seen);
        }
        if let Some(renewal) = operator.renewal {
            if let Some(order) = renewal.order() {
                self.order(order);
            }
            if let Some(write) = renewal.write() {
                self.write(write);
            }
        }
        match operator.rollout {
            Some(Rollout::Wait(leaf)) => self.leaf(Some(leaf)),
            Some(rollout) => {
                if let Some(write) = rollout.write() {
                    self.write(write);
                }
            }
            None => {}
        }
    }
}
