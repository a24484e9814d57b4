//! DNS hosts of clouds, which a pod asks with the identity that the cloud gives it.

pub(super) mod aws;
pub(super) mod azure;
pub(super) mod google;
pub(super) mod identity;
pub(super) mod route53;

/// Reads an answer of a DNS host, whichever it is.
#[cfg(test)]
pub(super) fn read(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let _ = (
        route53::public(&text, "a.example"),
        aws::element(&text, "Name"),
    );
    if let Ok(json) = serde_json::from_str(&text) {
        let _ = (google::public_zone(&json), azure::read(&json, 60));
    }
}
