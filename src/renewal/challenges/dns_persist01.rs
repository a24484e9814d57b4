//! dns-persist-01 in a renewal: which records the user must have set, by the challenges, and before there is an order
//! by the CA's directory.

use cert_renew_core::config::{Challenge, Config, DnsPersist01};
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;

use super::ways::{name_of, offered};
use crate::acme::{self, Authorization, Directory};
use crate::net::dns::ResolverSet;
use crate::net::egress::Nearby;
use crate::renewal::outcome::failure::Failure;
use crate::renewal::preflight::PlannedOrder;
use crate::solver::dns_persist01::{Ca, Error, Wanted, look};

/// The solver of a name, if it is of this kind.
fn solver<'a>(config: &'a Config, name: &Name) -> Option<&'a DnsPersist01> {
    match &config.solver(name)?.challenge {
        Challenge::DnsPersist01(solver) => Some(solver),
        _ => None,
    }
}

/// Checks that the records exist that these authorizations need; the CA is not asked to validate before they do.
///
/// # Errors
/// When one is missing, or a challenge cannot be proven.
pub(in crate::renewal) async fn check_records(
    config: &Config,
    order: &acme::Order,
    authorizations: impl Iterator<Item = &Authorization>,
) -> Result<(), Failure> {
    let (mut wanted, resolvers) = (Vec::new(), ResolverSet::default());
    for authorization in authorizations {
        let name = name_of(authorization)?;
        let challenge = offered(authorization, &acme::dns_persist_01())?;
        let ca = Ca {
            issuers: &challenge.issuer_domain_names,
            directory: order.directory(),
            account: &order.account_url()?,
            named: challenge.account_uri.as_deref(),
        };
        // If the config has another solver by now, the order goes on with the one it was made for.
        let solver = solver(config, &name);
        let servers = solver.map_or(&[][..], |it| &it.servers);
        let record = Wanted::new(&name, ca, servers)?;
        if solver.is_none_or(|it| it.self_check) {
            let resolver = resolvers.get(config.resolvers(Some(&name)));
            wanted.push((record, resolver.map_err(Error::from)?));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    Ok(look(order.nearby(), wanted, UnixTime::now()).await?)
}

/// Objections by the current records. A challenge would say which CA names they may hold; before there is one, the CAA
/// identities of the directory are used, and where it has none, or we have no account, nothing is reported.
pub async fn against(
    asked: &PlannedOrder<'_>,
    directory: &Directory,
    config: &Config,
) -> Vec<String> {
    let issuers = &directory.meta.caa_identities;
    let (Some(account), false) = (asked.account, issuers.is_empty()) else {
        return Vec::new();
    };
    let ca = Ca {
        issuers,
        directory: &asked.issuer.directory,
        account,
        named: None,
    };
    let solved = { asked.names.iter() }.filter_map(|name| Some((name, solver(config, name)?)));
    let resolvers = ResolverSet::default();
    let wanted = { solved.filter(|(_, solver)| solver.self_check) }.map(|(name, solver)| {
        let record = Wanted::new(name, ca, &solver.servers)?;
        Ok::<_, Error>((record, resolvers.get(config.resolvers(Some(name)))?))
    });
    let found = async {
        let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
        if wanted.is_empty() {
            return Ok(());
        }
        let nearby = Nearby::of(&asked.issuer.directory);
        look(nearby, wanted, UnixTime::now()).await
    };
    let found: Result<(), Error> = found.await;
    found.err().iter().map(ToString::to_string).collect()
}
