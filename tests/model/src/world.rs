//! What everybody sees: the objects of the API server and the orders of the CA.
//!
//! A guard by resourceVersion is a comparison of contents: none of these objects ever comes back to what it was, since
//! each write puts a certificate, a wish or a record there that was not there before.

/// The number of an order, and of the key and certificate that are made for it; 0 is the certificate that was there at
/// first. A number that nobody refers to any more is given again.
pub(crate) type Number = u8;

/// Most orders at the same time.
pub(crate) const MOST: usize = 12;

/// The names that the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Names {
    /// Those of the certificate that was there at first.
    First,
    /// Others.
    Other,
}

/// A certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Leaf {
    pub(crate) order: Number,
    pub(crate) names: Names,
}

/// The user's Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Secret {
    /// The pair; `None`: emptied.
    pub(crate) leaf: Option<Leaf>,
    /// The annotation `names`.
    pub(crate) names: Names,
    /// The annotation `renew-now`: how many values the user has set.
    pub(crate) renew_now: u8,
    /// The value of `renew-now` that was served last.
    pub(crate) renewed_for: u8,
    /// `issued-by`: the certificate that we wrote last.
    pub(crate) issued: Option<Leaf>,
    /// `rolled-out`: absent, `none`, or a certificate.
    pub(crate) rolled_out: Option<Option<Leaf>>,
}

/// A Deployment that mounts the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Workload {
    /// The certificate that the pod template names.
    pub(crate) template: Option<Leaf>,
    /// Whether pods of an earlier template are left.
    pub(crate) rolling: bool,
    /// What the pods have mounted.
    pub(crate) pods: Option<Leaf>,
}

impl Workload {
    /// Whether its pods have been started for this certificate.
    pub(crate) fn has(&self, leaf: Leaf) -> bool {
        !self.rolling
            && match self.template {
                Some(carried) => carried == leaf,
                None => self.pods == Some(leaf),
            }
    }
}

/// How far an order has come at the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Status {
    Pending,
    Ready,
    Valid,
    /// Its authorizations were given back.
    GivenUp,
}

/// An order at the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Order {
    pub(crate) names: Names,
    pub(crate) status: Status,
}

/// Who holds the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    Nobody,
    /// This replica.
    Replica(u8),
    /// A process that has ended.
    Former,
}
