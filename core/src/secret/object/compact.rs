//! Texts of the API server and instants in few bytes: each of a hundred thousand Secrets has a uid, a version and six
//! instants.
//!
//! A text in the usual form is packed; any other is kept as it came, since both are opaque.

use std::fmt;
use std::ops::Deref;

use crate::time::UnixTime;

/// The uid of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uid(Form);

/// The resourceVersion of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(Form);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Form {
    /// 32 lower-case hexadecimal digits, with hyphens as RFC 9562 has them.
    Uuid([u8; 16]),
    /// A decimal number without leading zeros.
    Number(u64),
    Other(Box<str>),
}

/// A text that is usually short, such as a name: up to 22 bytes are stored inline, which saves an allocation for each.
#[derive(Clone, Debug)]
pub struct Short(Held);

#[derive(Clone, Debug)]
enum Held {
    Here(u8, [u8; Short::HERE]),
    There(Box<str>),
}

impl Short {
    const HERE: usize = 22;
}

impl From<&str> for Short {
    fn from(text: &str) -> Self {
        let mut here = [0; Self::HERE];
        let length = u8::try_from(text.len()).ok();
        match (length, here.get_mut(..text.len())) {
            (Some(length), Some(place)) => {
                place.copy_from_slice(text.as_bytes());
                Self(Held::Here(length, here))
            }
            _ => Self(Held::There(text.into())),
        }
    }
}

impl Deref for Short {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Held::Here(length, here) => { here.get(..usize::from(*length)) }
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .unwrap_or_default(),
            Held::There(text) => text,
        }
    }
}

/// An instant in five bytes: exact for 17,000 years before and after 1970, more than a certificate can express (RFC
/// 5280, 4.1.2.5); other instants are clamped.
#[derive(Clone, Copy, Debug)]
pub struct Instant([u8; 5]);

impl Instant {
    /// Means [`UnixTime::NEVER`].
    const NEVER: i64 = (1 << 39) - 1;

    /// The same in bytes that are in the order of the instants.
    #[must_use]
    pub fn in_order(self) -> [u8; 5] {
        let Self([a, b, c, d, e]) = self;
        // The bit of the sign: what is before 1970 comes first.
        [e ^ 0x80, d, c, b, a]
    }

    /// The instant of [`Instant::in_order`].
    #[must_use]
    pub fn from_order([e, d, c, b, a]: [u8; 5]) -> Self {
        Self([a, b, c, d, e ^ 0x80])
    }
}

impl From<UnixTime> for Instant {
    fn from(time: UnixTime) -> Self {
        let seconds = match time {
            UnixTime::NEVER => Self::NEVER,
            UnixTime(seconds) => seconds.clamp(-Self::NEVER, Self::NEVER - 1),
        };
        let [bytes @ .., _, _, _] = seconds.to_le_bytes();
        Self(bytes)
    }
}

impl From<Instant> for UnixTime {
    fn from(Instant([a, b, c, d, e]): Instant) -> Self {
        // The shift extends the sign of the highest byte.
        match i64::from_le_bytes([0, 0, 0, a, b, c, d, e]) >> 24 {
            Instant::NEVER => Self::NEVER,
            seconds => Self(seconds),
        }
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        Self(uuid(text).map_or_else(|| Form::Other(text.into()), Form::Uuid))
    }
}

impl From<&str> for Version {
    fn from(text: &str) -> Self {
        Self(number(text).map_or_else(|| Form::Other(text.into()), Form::Number))
    }
}

/// The bytes of a text in the form of [`Form::Uuid`].
fn uuid(text: &str) -> Option<[u8; 16]> {
    let text: &[u8; 36] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0_u8; 16];
    let mut digits = 0_usize;
    for (at, character) in text.iter().copied().enumerate() {
        let digit = match (at, character) {
            (8 | 13 | 18 | 23, b'-') => continue,
            (8 | 13 | 18 | 23, _) => return None,
            (_, b'0'..=b'9') => character - b'0',
            (_, b'a'..=b'f') => character - b'a' + 10,
            _ => return None,
        };
        let byte = bytes.get_mut(digits / 2)?;
        *byte = (*byte << 4) | digit;
        digits += 1;
    }
    Some(bytes)
}

/// The number of a text in the form of [`Form::Number`].
fn number(text: &str) -> Option<u64> {
    let is_usual = match text.as_bytes() {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    text.parse().ok().filter(|_| is_usual)
}

impl Uid {
    /// The bytes, if the text has the usual form.
    #[must_use]
    pub fn short(&self) -> Option<[u8; 16]> {
        match self.0 {
            Form::Uuid(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl From<[u8; 16]> for Uid {
    fn from(bytes: [u8; 16]) -> Self {
        Self(Form::Uuid(bytes))
    }
}

impl Version {
    /// The number, if the text has the usual form and fits (a million etcd writes a second for a fortnight).
    #[must_use]
    pub fn short(&self) -> Option<[u8; 5]> {
        match self.0 {
            Form::Number(number) => match number.to_le_bytes() {
                [bytes @ .., 0, 0, 0] => Some(bytes),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Version {
    /// Whether it is of an earlier write than `other`. All Secrets of a cluster share one sequence.
    #[must_use]
    pub fn is_before(&self, other: &Self) -> bool {
        matches!((&self.0, &other.0), (Form::Number(this), Form::Number(other)) if this < other)
    }
}

impl From<[u8; 5]> for Version {
    fn from([a, b, c, d, e]: [u8; 5]) -> Self {
        Self(Form::Number(u64::from_le_bytes([a, b, c, d, e, 0, 0, 0])))
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(bytes) => {
                for (at, byte) in bytes.iter().enumerate() {
                    if [4, 6, 8, 10].contains(&at) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
            Self::Number(number) => write!(f, "{number}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_any_length_comes_back() {
        assert_eq!(size_of::<Short>(), 24);
        for length in [0, 1, 21, 22, 23, 253, 300] {
            let text = "ä".repeat(length / 2) + &"x".repeat(length % 2);
            assert_eq!(&*Short::from(&*text), text);
        }
    }

    #[test]
    fn an_instant_comes_back_as_it_was() {
        const FIRST: i64 = -62_135_596_800;
        const LAST: i64 = 253_402_300_799;
        for seconds in [FIRST, -1, 0, 1, 1_764_000_000, LAST, i64::MAX] {
            let time = UnixTime(seconds);
            assert_eq!(UnixTime::from(Instant::from(time)), time);
        }
        for far in [i64::MIN, i64::MAX - 1] {
            let held = UnixTime::from(Instant::from(UnixTime(far)));
            assert!(
                held != UnixTime::NEVER && (held.0 < 0) == (far < 0),
                "{held:?}"
            );
        }
    }

    #[test]
    fn every_text_comes_back_as_it_was() {
        let usual = "0f9d6a3e-1b2c-4d5e-8f70-a1b2c3d4e5f6";
        assert!(matches!(Uid::from(usual).0, Form::Uuid(_)));
        assert_eq!(
            Uid::from(usual).short(),
            Some(0x0f9d_6a3e_1b2c_4d5e_8f70_a1b2_c3d4_e5f6_u128.to_be_bytes())
        );
        assert!(matches!(Version::from("123456").0, Form::Number(123_456)));
        for text in [
            "",
            usual,
            "0F9D6A3E-1B2C-4D5E-8F70-A1B2C3D4E5F6",
            "0f9d6a3e1b2c4d5e8f70a1b2c3d4e5f6",
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "0f9d6a3e-1b2c-4d5e-8f70-a1b2c3d4e5fg",
            "0f9d6a3e-1b2c-4d5e-8f70-a1b2c3d4e5-6",
            "0f9d6a3e01b2c-4d5e-8f70-a1b2c3d4e5f6",
            "-0f9d6a3-1b2c-4d5e-8f70-a1b2c3d4e5f6",
            "0",
            "007",
            "-1",
            "+1",
            "18446744073709551615",
            "18446744073709551616",
            "12a",
            " 1",
            "a version",
            "ä",
        ] {
            assert_eq!(Uid::from(text).to_string(), text);
            assert_eq!(Version::from(text).to_string(), text);
        }
    }
}
