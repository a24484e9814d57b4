//! Signed updates of a zone (RFC 2136, RFC 8945), and why a server refuses them.
//!
//! dns-update says the same of a wrong key name, a wrong secret and a clock that differs, because such a refusal is not
//! signed. So after a refusal the server is asked one signed question, and the TSIG error of its answer is read.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cert_renew_core::time::UnixTime;
use dns_update::DnsUpdater;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError};
use hickory_proto::rr::{RecordType, TSigner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::needs::Needs;
use super::{Error, hosts};
use crate::net::dns;

/// Longest question for the reason of a refusal.
const QUESTION: Duration = Duration::from_secs(5);
/// Most seconds by which the server's clock may differ, as in dns-update.
const FUDGE: u16 = 60;

/// A server and the key that it knows.
pub(super) struct Signed {
    pub(super) updater: DnsUpdater,
    address: SocketAddr,
    key_name: String,
    signer: TSigner,
}

impl Signed {
    pub(super) fn new(needs: &Needs<'_>) -> Result<Self, Error> {
        let server = needs.required("server")?;
        let address = match server.parse() {
            Ok(ip) => SocketAddr::new(ip, 53),
            Err(_) => server.parse().map_err(|_| {
                needs.settings(
                    "expected settings.server as an address such as 10.0.0.53 or 10.0.0.53:53",
                )
            })?,
        };
        let (algorithm, own) = match needs.setting("algorithm").as_deref() {
            None | Some("hmac-sha256") => (
                dns_update::TsigAlgorithm::HmacSha256,
                TsigAlgorithm::HmacSha256,
            ),
            Some("hmac-sha384") => (
                dns_update::TsigAlgorithm::HmacSha384,
                TsigAlgorithm::HmacSha384,
            ),
            Some("hmac-sha512") => (
                dns_update::TsigAlgorithm::HmacSha512,
                TsigAlgorithm::HmacSha512,
            ),
            Some(_) => {
                return Err(needs.settings(
                    "expected settings.algorithm to be hmac-sha256, hmac-sha384 or hmac-sha512",
                ));
            }
        };
        let key = BASE64_STANDARD
            .decode(needs.secret("secret")?)
            .map_err(|_| {
                needs.expected(
                    "expected at key secret the TSIG key in base64, as in the server's config",
                )
            })?;
        let key_name = needs.required("keyName")?;
        // Signed updates with several values do not fit a datagram everywhere.
        let server = format!("tcp://{address}");
        let updater = DnsUpdater::new_rfc2136_tsig(server, &key_name, key.clone(), algorithm);
        let updater = updater.map_err(|error| hosts::told(needs, &error))?;
        let is_name = "expected settings.keyName as the name of a key, as in the server's config";
        let name = dns::name(&key_name).map_err(|_| needs.settings(is_name))?;
        let signer = TSigner::new(key, own, name, FUDGE);
        let signer = signer.map_err(|error| needs.settings(error.to_string()))?;
        Ok(Self {
            updater,
            address,
            key_name,
            signer,
        })
    }

    /// The result of a change of a zone, with the server's reason where it refused.
    pub(super) async fn explained(
        &self,
        result: Result<(), dns_update::Error>,
        zone: &str,
    ) -> Result<(), String> {
        let Err(error) = result else {
            return Ok(());
        };
        let said = error.to_string();
        let asked = timeout(QUESTION, self.ask(zone)).await.ok().flatten();
        let reason = asked.and_then(|asked| self.reason(asked, &said, zone));
        Err(reason.unwrap_or(said))
    }

    /// The answer to a signed question: its code, and what the server has against the signature.
    async fn ask(&self, zone: &str) -> Option<(ResponseCode, Option<TsigError>)> {
        let mut question = Message::query();
        question.add_query(Query::query(dns::name(zone).ok()?, RecordType::SOA));
        let now = u64::try_from(UnixTime::now().0).ok()?;
        question.finalize(&self.signer, now).ok()?;
        let bytes = question.to_vec().ok()?;
        let mut stream = TcpStream::connect(self.address).await.ok()?;
        stream.write_u16(bytes.len().try_into().ok()?).await.ok()?;
        stream.write_all(&bytes).await.ok()?;
        let mut answer = vec![0; stream.read_u16().await.ok()?.into()];
        stream.read_exact(&mut answer).await.ok()?;
        let answer = Message::from_vec(&answer).ok()?;
        let error = answer.signature().and_then(|it| it.data.error);
        Some((answer.metadata.response_code, error))
    }

    /// The reason in words, from that answer and from what dns-update says; none if it is not about the key.
    fn reason(
        &self,
        (code, error): (ResponseCode, Option<TsigError>),
        said: &str,
        zone: &str,
    ) -> Option<String> {
        let refused = said.contains(ResponseCode::Refused.to_str());
        let not_primary =
            said.contains(ResponseCode::NotAuth.to_str()) || code == ResponseCode::Refused;
        let key = &self.key_name;
        Some(match error {
            Some(TsigError::BadKey) => format!(
                "the server has no key {key}, or one that has no rights in this zone (BADKEY): compare settings.keyName and \
                 settings.algorithm with its config"
            ),
            Some(TsigError::BadSig) => format!(
                "the server has another secret for key {key} (BADSIG): compare the entry secret of the Secret with its config"
            ),
            Some(TsigError::BadTime) => {
                format!("the server's clock and ours differ by more than {FUDGE} s (BADTIME)")
            }
            Some(other) => format!(
                "the server rejects the signature by key {key} (TSIG error {})",
                u16::from(other)
            ),
            None if refused => format!(
                "the server does not let key {key} change this name (REFUSED): allow it in its config"
            ),
            None if not_primary => format!(
                "the server is not the primary of zone {zone} (NOTAUTH): settings.server has to be"
            ),
            None => return None,
        })
    }
}
