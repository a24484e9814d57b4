//! The rollout state on a Secret: a halt that a fail-over must keep.
//!
//! Pure. An older version may read what a newer one wrote: an unreadable value counts as absent.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::certificate::Fingerprint;
use crate::secret::parts::ChainAndCa;
use crate::secret::workload::WorkloadRef;

/// Suffix of the value after `cert-renew resume`.
const RESUMED: &str = " resumed";

/// Value of [`crate::secret::keys::ROLLOUT_HALTED`]: `<workload> <leaf>.<chain and CA>`, with ` resumed` after
/// `cert-renew resume`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaltNote {
    /// The workload that failed.
    pub workload: WorkloadRef,
    /// The leaf that it was rolled for.
    pub leaf: Fingerprint,
    /// The chain and CA beside it; `None` if an earlier version has written the note.
    pub with: Option<ChainAndCa>,
    /// `cert-renew resume` was called: the workload is tried again, and no longer stops the others.
    pub resumed: bool,
}

/// Why a text is not a [`HaltNote`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected a workload such as deployment/web and a fingerprint")]
pub struct NotAHaltNote;

impl HaltNote {
    /// Whether a value of the annotation holds the rollout back; not after it was resumed.
    #[must_use]
    pub fn holds(value: &str) -> bool {
        !value.ends_with(RESUMED)
    }
}

impl fmt::Display for HaltNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.workload, self.leaf)?;
        if let Some(with) = self.with {
            write!(f, ".{with}")?;
        }
        if self.resumed {
            f.write_str(RESUMED)
        } else {
            Ok(())
        }
    }
}

impl FromStr for HaltNote {
    type Err = NotAHaltNote;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (rest, resumed) = s
            .strip_suffix(RESUMED)
            .map_or((s, false), |rest| (rest, true));
        let parts = rest.split_once(' ').and_then(|(workload, leaf)| {
            let (leaf, with) = match leaf.split_once('.') {
                Some((leaf, with)) => (leaf, Some(with.parse().ok()?)),
                None => (leaf, None),
            };
            Some(Self {
                workload: workload.parse().ok()?,
                leaf: leaf.parse().ok()?,
                with,
                resumed,
            })
        });
        parts.ok_or(NotAHaltNote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halt_survives_the_annotation() {
        let leaf = Fingerprint::of(b"leaf");
        let with = Some(ChainAndCa { chain: 1, ca: 2 });
        for (resumed, with) in [(false, None), (true, None), (false, with), (true, with)] {
            let note = HaltNote {
                workload: "deployment/web".parse().unwrap(),
                leaf,
                with,
                resumed,
            };
            assert_eq!(HaltNote::holds(&note.to_string()), !resumed);
            assert_eq!(note.to_string().parse(), Ok(note));
        }
        for bad in ["", "deployment/web", "pod/x 00", " resumed"] {
            assert_eq!(bad.parse::<HaltNote>(), Err(NotAHaltNote), "{bad}");
        }
    }
}
