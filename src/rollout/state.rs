//! What a Secret says of its rollout: a halt that a fail-over must keep, and when its data was written.
//!
//! Pure. An older version may meet what a newer one wrote: whoever reads treats the unreadable as absent.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use thiserror::Error;

use crate::certificate::Fingerprint;
use crate::secret::workload::WorkloadRef;
use crate::time::UnixTime;

/// Value of [`crate::secret::keys::ROLLOUT_HALTED`]: `<workload> <leaf>`, with ` resumed` once a user wants to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaltNote {
    /// The workload that failed.
    pub workload: WorkloadRef,
    /// The leaf that it was rolled for.
    pub leaf: Fingerprint,
    /// `cert-renew resume` was asked: the workload is tried again, and no longer stops the others.
    pub resumed: bool,
}

/// Why a text is not a [`HaltNote`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected a workload such as deployment/web and a fingerprint")]
pub struct NotAHaltNote;

impl fmt::Display for HaltNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.workload, self.leaf)?;
        if self.resumed {
            f.write_str(" resumed")
        } else {
            Ok(())
        }
    }
}

impl FromStr for HaltNote {
    type Err = NotAHaltNote;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (rest, resumed) = s
            .strip_suffix(" resumed")
            .map_or((s, false), |rest| (rest, true));
        let parts = rest.split_once(' ').and_then(|(workload, leaf)| {
            Some(Self {
                workload: workload.parse().ok()?,
                leaf: leaf.parse().ok()?,
                resumed,
            })
        });
        parts.ok_or(NotAHaltNote)
    }
}

/// When a Secret's data was last written, by the API server's clock: `None` where managedFields do not tell.
///
/// A manager's entry gets a new time whenever a value that it owns changes (Kubernetes, "Server-Side Apply: field
/// management"), so that the latest entry that owns data is no earlier than the leaf.
#[must_use]
pub fn written_at(secret: &ObjectMeta) -> Option<UnixTime> {
    let entries = secret.managed_fields.iter().flatten();
    let of_data = entries.filter(|entry| {
        entry
            .fields_v1
            .as_ref()
            .is_some_and(|fields| fields.0.get("f:data").is_some())
    });
    of_data
        .filter_map(|entry| entry.time.as_ref().map(|time| UnixTime(time.0.as_second())))
        .max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_halt_survives_the_annotation() {
        let leaf = Fingerprint::of(b"leaf");
        for resumed in [false, true] {
            let note = HaltNote {
                workload: "deployment/web".parse().unwrap(),
                leaf,
                resumed,
            };
            assert_eq!(note.to_string().parse(), Ok(note));
        }
        for bad in ["", "deployment/web", "pod/x 00", " resumed"] {
            assert_eq!(bad.parse::<HaltNote>(), Err(NotAHaltNote), "{bad}");
        }
    }

    #[test]
    fn the_write_is_the_latest_entry_that_owns_data() {
        let meta = |fields: serde_json::Value| {
            serde_json::from_value(json!({"managedFields": fields})).unwrap()
        };
        let entry =
            |time: &str, fields: serde_json::Value| json!({"time": time, "fieldsV1": fields});
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let data = json!({"f:data": {"f:tls.crt": {}}});
        let annotations = json!({"f:metadata": {"f:annotations": {}}});
        for (fields, expected) in [
            (
                json!([entry(early, data.clone()), entry(late, annotations.clone())]),
                early.parse().ok(),
            ),
            (
                json!([entry(late, data.clone()), entry(early, data)]),
                late.parse().ok(),
            ),
            (json!([entry(late, annotations)]), None),
            (json!(null), None),
        ] {
            assert_eq!(written_at(&meta(fields)), expected);
        }
    }
}
