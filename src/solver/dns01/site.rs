//! Where the TXT record for a name is set: at its label, or where the CNAMEs of that lead.

use cert_renew_core::config::Dns01;
use cert_renew_core::text::name::Name;

use super::Error;
use crate::net::dns::{self, RecordType, Resolver};

/// Label below the name at which the CA looks (RFC 8555, section 8.4).
const LABEL: &str = "_acme-challenge";
/// A sibling of that label at which no record exists, except those of a wildcard.
const NOBODY: &str = "_cert-renew-sees-a-wildcard";

/// The place of the proof for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The name at which the CA looks first.
    pub asked: String,
    /// The name of the record: the same, or where its CNAMEs lead.
    pub at: String,
    /// The zone that holds it.
    pub zone: String,
}

/// Finds the place of the proof for a name.
///
/// A CNAME at the name at which the CA looks is followed: the zone delegates its challenges. A CNAME that comes only
/// from a wildcard (`*.example.com`) is not meant for that, and a record of our own hides it.
///
/// # Errors
/// When DNS gives no answer.
pub async fn site(resolver: &Resolver, name: &Name) -> Result<Site, dns::Error> {
    let bare = name.to_string();
    let bare = bare.strip_prefix("*.").unwrap_or(&bare);
    let asked = dns::name(&format!("{LABEL}.{bare}"))?;
    let mut at = resolver.follow(&asked).await?;
    if at != asked {
        let neighbour = dns::name(&format!("{NOBODY}.{bare}"))?;
        let first = |name| resolver.records(name, RecordType::CNAME);
        if first(&neighbour).await? == first(&asked).await? {
            at = asked.clone();
        }
    }
    let zone = resolver.zone(&at).await?;
    Ok(Site {
        asked: dns::text(&asked),
        at: dns::text(&at),
        zone: dns::text(&zone),
    })
}

impl Site {
    /// Checks that the record is within the solver's zones. The owner of a name's zone decides where its CNAMEs lead,
    /// and the credentials may be good for more zones than intended: if a solver names its zones, no record is set
    /// outside of them.
    ///
    /// # Errors
    /// When the CNAMEs lead out of them.
    pub fn is_within(&self, zones: &[Box<str>], solver: &Dns01) -> Result<(), Error> {
        let within = |zone: &str| {
            let rest = self.at.strip_suffix(zone);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        // acme-dns writes only below the names that it has assigned to us.
        let is_bound = solver.provider != "acme-dns" && self.at != self.asked;
        if !is_bound || zones.is_empty() || zones.iter().any(|zone| within(zone)) {
            return Ok(());
        }
        Err(Error::Outside {
            asked: self.asked.clone(),
            at: self.at.clone(),
            zones: zones.join(", "),
        })
    }
}
