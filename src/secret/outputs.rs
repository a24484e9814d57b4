//! Stand-in until the settings land: the parts of design 2.1, without their parser.

/// One data key and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Key of the Secret's data.
    pub name: Box<str>,
    /// What it holds, in this order.
    pub parts: Vec<Part>,
}

/// A piece of an issued certificate, or something that servers want beside it.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Leaf,
    Chain,
    Fullchain,
    Key,
    DerKey,
    DerLeaf,
    Pkcs12,
    Ffdhe2048,
}
