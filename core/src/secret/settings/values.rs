//! The small values that annotations and the config file share, each with a single written form.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use thiserror::Error;

use crate::secret::workload::RolloutMode;
use crate::time::duration::{self, human};

/// The issuer that means none: another program renews.
pub const EXTERNAL: &str = "external";

/// Longest name of an issuer, a class or a Service, in characters: a DNS label (RFC 1123, 2.1).
const MAX_LABEL: usize = 63;

/// Longest profile name, in characters; those of known CAs have a dozen.
const MAX_PROFILE: usize = 64;

/// Shortest lifetime that may be requested: a renewal needs time for a second try.
const SHORTEST_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Longest lifetime that may be requested; private CAs issue for years.
const LONGEST_LIFETIME: Duration = Duration::from_secs(3_650 * 86_400);

/// Longest `post:` path, in bytes.
const MAX_PATH: usize = 512;

/// The issuer of a Secret's certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IssuerRef {
    /// Another program renews: watch, alert and roll only.
    External,
    /// An issuer of the config file, which may not exist.
    Named(Arc<str>),
}

impl IssuerRef {
    /// Whether it is no issuer's name, but what was written in place of one.
    #[must_use]
    pub fn is_misread(&self) -> bool {
        matches!(self, Self::Named(name) if !is_label(name))
    }
}

/// How long before its end a certificate is renewed; the caller caps it at half of the lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewBefore {
    /// This long before notAfter; never zero.
    Before(Duration),
    /// When this share of the lifetime is left, in percent, 1 to 99.
    Share(u8),
}

/// Whether a renewal makes a new key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyRotation {
    /// A new key for each renewal.
    #[default]
    Always,
    /// The present key is kept.
    Never,
}

/// A port of a Service in the Secret's namespace, written `web:443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The Service.
    pub service: Box<str>,
    /// The port that the Service offers; never zero.
    pub port: u16,
}

/// Why a text is not a value of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotAValue {
    /// Not an [`IssuerRef`].
    #[error("expected the name of an issuer in the config file, or external")]
    Issuer,
    /// Not a [`RenewBefore`].
    #[error("expected a duration such as 30d or 12h, or a share of the lifetime from 1% to 99%")]
    RenewBefore,
    /// Not a lifetime that a CA may be asked for.
    #[error("expected a lifetime from 5m to 3650d, such as 24h or 7d")]
    Lifetime,
    /// Not a [`KeyRotation`].
    #[error("expected always or never")]
    KeyRotation,
    /// Not a [`ServicePort`].
    #[error("expected service:port in the same namespace, such as web:443")]
    ServicePort,
    /// Not a [`RolloutMode`].
    #[error("expected restart, none, or post:<port>/<path> such as post:8080/-/reload")]
    Rollout,
}

/// Whether an issuer or a class can have this name: a DNS label, since objects are named after it.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=MAX_LABEL).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether an ACME profile can have this name; the draft sets no rule, so: what JSON and logs take without quoting.
#[must_use]
pub fn is_profile(text: &str) -> bool {
    (1..=MAX_PROFILE).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Parses the lifetime to request from a CA: `notAfter` less `notBefore` of the order (RFC 8555, 7.4).
///
/// # Errors
/// When it is no duration, or not within the bounds of lifetimes.
pub fn parse_lifetime(text: &str) -> Result<Duration, NotAValue> {
    let parsed = duration::parse(text).ok();
    parsed
        .filter(|it| (SHORTEST_LIFETIME..=LONGEST_LIFETIME).contains(it))
        .ok_or(NotAValue::Lifetime)
}

impl fmt::Display for IssuerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::External => f.write_str(EXTERNAL),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl FromStr for IssuerRef {
    type Err = NotAValue;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            EXTERNAL => Ok(Self::External),
            name if is_label(name) => Ok(Self::Named(name.into())),
            _ => Err(NotAValue::Issuer),
        }
    }
}

impl fmt::Display for RenewBefore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before(before) => f.write_str(&human(*before)),
            Self::Share(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for RenewBefore {
    type Err = NotAValue;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parsed = match s.strip_suffix('%') {
            Some(percent) => percent
                .trim()
                .parse()
                .ok()
                .filter(|p| (1..=99).contains(p))
                .map(Self::Share),
            None => duration::parse(s)
                .ok()
                .filter(|before| !before.is_zero())
                .map(Self::Before),
        };
        parsed.ok_or(NotAValue::RenewBefore)
    }
}

impl FromStr for KeyRotation {
    type Err = NotAValue;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(NotAValue::KeyRotation),
        }
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

impl FromStr for ServicePort {
    type Err = NotAValue;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (service, port) = s.split_once(':').ok_or(NotAValue::ServicePort)?;
        let port = parse_port(port)
            .filter(|_| is_label(service))
            .ok_or(NotAValue::ServicePort)?;
        Ok(Self {
            service: service.into(),
            port,
        })
    }
}

impl fmt::Display for RolloutMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restart => f.write_str("restart"),
            Self::None => f.write_str("none"),
            Self::Post { port, path } => write!(f, "post:{port}{path}"),
        }
    }
}

impl FromStr for RolloutMode {
    type Err = NotAValue;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "restart" => return Ok(Self::Restart),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let (port, path) = s
            .strip_prefix("post:")
            .and_then(|rest| rest.split_at_checked(rest.find('/')?))
            .ok_or(NotAValue::Rollout)?;
        // It becomes a request line: anything but a URI path could become a second header.
        let sound = path.len() <= MAX_PATH
            && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
            && path.parse::<PathAndQuery>().is_ok();
        let port = parse_port(port)
            .filter(|_| sound)
            .ok_or(NotAValue::Rollout)?;
        Ok(Self::Post {
            port,
            path: path.into(),
        })
    }
}

/// Digits only, since `u16` would also take a sign.
fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reprint<T: FromStr<Err = NotAValue> + fmt::Display>(text: &str) -> String {
        text.parse::<T>()
            .map_or_else(|error| error.to_string(), |value| value.to_string())
    }

    #[test]
    fn what_parses_prints_the_same() {
        for text in ["external", "letsencrypt", "le-2", &"a".repeat(63)] {
            assert_eq!(reprint::<IssuerRef>(text), text);
        }
        for text in ["30d", "12h", "33%", "1%", "99%"] {
            assert_eq!(reprint::<RenewBefore>(text), text);
        }
        for text in ["web:443", "a-b:65535"] {
            assert_eq!(reprint::<ServicePort>(text), text);
        }
        for text in ["restart", "none", "post:8080/", "post:8080/-/reload?now=1"] {
            assert_eq!(reprint::<RolloutMode>(text), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "Let's Encrypt",
            "UPPER",
            "-a",
            "a-",
            "a.b",
            "ä",
            &"a".repeat(64),
        ] {
            assert_eq!(bad.parse::<IssuerRef>(), Err(NotAValue::Issuer), "{bad:?}");
        }
        for bad in [
            "", "0%", "100%", "-1%", "%", "33", "0s", "1.5%", "30 d", "256%",
        ] {
            assert_eq!(
                bad.parse::<RenewBefore>(),
                Err(NotAValue::RenewBefore),
                "{bad:?}"
            );
        }
        for bad in [
            "",
            "web",
            "web:",
            ":443",
            "web:0",
            "web:+1",
            "web:65536",
            "web.other:443",
            "web:https",
            "a:1:2",
        ] {
            assert_eq!(
                bad.parse::<ServicePort>(),
                Err(NotAValue::ServicePort),
                "{bad:?}"
            );
        }
        for bad in [
            "",
            "Restart",
            "post",
            "post:8080",
            "post:/x",
            "post:0/x",
            "post:8080/a b",
            "post:8080/a\r\nHost: b",
            "post:8080/ä",
            "post:8080/#a",
            &format!("post:1/{}", "a".repeat(512)),
        ] {
            assert_eq!(
                bad.parse::<RolloutMode>(),
                Err(NotAValue::Rollout),
                "{bad:?}"
            );
        }
        for bad in ["", "Always", "on"] {
            assert_eq!(
                bad.parse::<KeyRotation>(),
                Err(NotAValue::KeyRotation),
                "{bad:?}"
            );
        }
    }
}
