//! Faults that the model is given on purpose, each of which has to be found.

/// A fault of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Planted {
    /// Requests are sent although the lease is lost, and tasks go on.
    GateOut,
    /// The lease is claimed without the version that it was seen in.
    ClaimUnguarded,
    /// A replica that claims the lease believes that it has it, whatever the answer.
    ClaimBelieved,
    /// The pair is written without uid and resourceVersion.
    PairUnguarded,
    /// `rolled-out` is written without uid and resourceVersion.
    RolledOutUnguarded,
    /// The order record is put in place of one that is there.
    RecordReplaced,
    /// The order record is deleted whichever it is.
    RecordDeletedByName,
    /// The order record is made once the CA has issued.
    RecordTooLate,
    /// The order record is deleted before the pair is written.
    RecordDeletedEarly,
    /// The order record is left where the pair was written.
    RecordLeft,
    /// A new leader does not read the order records.
    RecordsUnread,
    /// An order is gone on with whether or not the Secret is still due.
    DueForgotten,
    /// Before finalize and write nobody looks whether the Secret still wants the order.
    WishForgotten,
    /// `rolled-out` is written before the workload has the certificate.
    RolledOutEarly,
    /// `rolled-out` is written with the pair.
    RolledOutWithThePair,
    /// `rolled-out` is not written.
    RolledOutNever,
    /// What the pod template carries does not count.
    TemplateIgnored,
    /// A workload is patched by the look of the plan, whatever came since.
    LookReused,
}

impl Planted {
    /// All of them.
    pub(crate) const ALL: [Self; 18] = [
        Self::GateOut,
        Self::ClaimUnguarded,
        Self::ClaimBelieved,
        Self::PairUnguarded,
        Self::RolledOutUnguarded,
        Self::RecordReplaced,
        Self::RecordDeletedByName,
        Self::RecordTooLate,
        Self::RecordDeletedEarly,
        Self::RecordLeft,
        Self::RecordsUnread,
        Self::DueForgotten,
        Self::WishForgotten,
        Self::RolledOutEarly,
        Self::RolledOutWithThePair,
        Self::RolledOutNever,
        Self::TemplateIgnored,
        Self::LookReused,
    ];
}
