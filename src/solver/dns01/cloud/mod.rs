//! DNS hosts of clouds, which a pod asks with the identity that the cloud gives it.

pub(super) mod aws;
pub(super) mod azure;
pub(super) mod google;
pub(super) mod identity;
pub(super) mod route53;
