//! What a renewal changes about a Secret: the pair, its outputs, and the annotations that say what was done.

use std::time::Duration;

use cert_renew_core::assess::Assessment;
use cert_renew_core::certificate::key::PrivateKey;
use cert_renew_core::certificate::loader;
use cert_renew_core::certificate::pair::{self, Chain, Rejected};
use cert_renew_core::secret::data::render::{Rendered, render};
use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::full::Data;
use cert_renew_core::secret::state::IssuedBy;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::state_line;
use zeroize::Zeroizing;

use crate::cluster::events;
use crate::cluster::order_records::Record;
use crate::cluster::secrets::{self, Changes};
use crate::renewal::outcome::Outcome;
use crate::renewal::outcome::failure::Failure;
use crate::renewal::renewals::Renewal;
use crate::renewal::target::RenewalTarget;
use crate::telemetry::stage::Stage;

/// A broken pair is checked again after this; the watch brings it sooner when it changes.
const AGAIN: Duration = Duration::from_secs(3_600);

impl Renewal<'_> {
    /// `is_as_asked` says whether the order's profile and lifetime are those that the Secret asks for now.
    pub(in crate::renewal) fn changes<'a>(
        self,
        fresh: &RenewalTarget,
        (record, is_as_asked): (&Record, bool),
        chain: &Chain,
    ) -> Result<Changes<'a>, Failure> {
        let Assessment {
            settings,
            rolled_out,
            ..
        } = &fresh.assessment;
        let new_key = PrivateKey::from_pem(record.key.as_bytes())?;
        // Record what was issued, not what is asked for by now: the difference makes the Secret due once more.
        let (profile, lifetime) = if is_as_asked {
            (settings.profile.clone(), settings.lifetime)
        } else {
            let profile = record.order.profile.as_deref().map(Into::into);
            (profile, record.order.lifetime.map(Duration::from_secs))
        };
        let issued_by = IssuedBy {
            issuer: (*fresh.issuer_name).into(),
            directory: record.order.directory.as_deref().map(Into::into),
            names: record.order.names.clone(),
            profile,
            lifetime,
            key_type: settings.key_type.and_then(|_| new_key.key_type()),
            written: Some((chain.leaf.fingerprint, UnixTime::now())),
            account: record.order.account.as_deref().map(Into::into),
            outputs: settings.outputs_digest(),
        };
        let mut annotations = vec![
            (keys::ISSUED_BY, Some(issued_by.to_string())),
            (keys::LAST_ERROR, None),
            (keys::RETRY_AT, None),
            (keys::ROLLOUT_HALTED, None),
            (keys::STATE, Some(state_line::RENEWED.to_owned())),
            (keys::SINCE, None),
        ];
        if let Some(value) = &settings.renew_now {
            annotations.push((keys::RENEWED_FOR, Some(value.to_string())));
        }
        if rolled_out.is_none() {
            // The leaf that the workloads have until their rollout: the old one, or the one that the index remembers.
            let remembered = self
                .shared
                .entry(self.key)
                .and_then(|entry| entry.rolled_out());
            let had = remembered.unwrap_or_else(|| fresh.assessment.held());
            annotations.extend(had.written_for(fresh.uid()));
        }
        let data = self.outputs(fresh, chain, &new_key)?;
        Ok(Changes { annotations, data })
    }

    /// The Secret's data for this pair.
    fn outputs(
        self,
        fresh: &RenewalTarget,
        chain: &Chain,
        new_key: &PrivateKey,
    ) -> Result<Data, Failure> {
        let settings = &fresh.assessment.settings;
        let password = settings.pkcs12_password_key.as_deref();
        let password = password.and_then(|name| fresh.secret.data.get(name));
        let password = password.and_then(|bytes| std::str::from_utf8(bytes).ok());
        let Rendered { mut data, left_out } = render(
            &fresh.secret.kind,
            &settings.outputs,
            chain,
            new_key,
            password,
        )?;
        if !left_out.is_empty() {
            let note = format!(
                "outputs {} are left as they are: PKCS#12 takes a password, from the key of this Secret that \
             cert-renew.io/pkcs12-password-key names",
                left_out.join(", ")
            );
            self.tell(fresh.uid(), events::Reason::OutputLeftOut, &note);
        }
        if let Some(kept) = kept_file(fresh, new_key)
            && let Some(rendered) = data.get_mut("tls.key")
        {
            *rendered = kept;
        }
        Ok(data)
    }
}

/// The key file of a key that is kept, unchanged: its readers may support no other form than PKCS#1.
fn kept_file(fresh: &RenewalTarget, key: &PrivateKey) -> Option<Zeroizing<Vec<u8>>> {
    let file = fresh.secret.data.get("tls.key")?;
    let is_same = PrivateKey::from_pem(file).is_ok_and(|it| it.public_key() == key.public_key());
    (is_same && loader::of_key(file).is_none()).then(|| file.clone())
}

impl Renewal<'_> {
    /// Writes the outputs that are asked for by now, from the current pair. The certificate stays the same, so no CA is
    /// asked and no workload restarted.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(in crate::renewal) async fn write_outputs(
        self,
        fresh: &RenewalTarget,
    ) -> Result<Outcome, Failure> {
        let (certificate, private_key) = fresh.secret.pair();
        let Some(issued_by) = &fresh.assessment.issued_by else {
            return Ok(Outcome::Later(UnixTime::NEVER, None));
        };
        let now = UnixTime::now();
        if let Err(fault) = pair::check_pair(certificate, private_key, now) {
            let note = format!(
                "outputs are not written from the pair that is there: {}",
                error_chain(&fault)
            );
            return Ok(Outcome::Later(now + AGAIN, Some(note.into())));
        }
        let unreadable = |fault| Failure::Rejected(Rejected::Unreadable(fault));
        let pair = Chain::read(certificate).map_err(unreadable)?;
        let new_key = PrivateKey::from_pem(private_key)?;
        let mut data = self.outputs(fresh, &pair, &new_key)?;
        // The pair itself stays unchanged, byte for byte.
        let place = fresh.secret.place();
        data.retain(|name, _| **name != *place.certificate && **name != *place.key);
        data.retain(|name, value| fresh.secret.data.get(name) != Some(value));
        let issued_by = IssuedBy {
            outputs: fresh.assessment.settings.outputs_digest(),
            ..issued_by.clone()
        };
        let annotations = vec![(keys::ISSUED_BY, Some(issued_by.to_string()))];
        let written: Vec<String> = data.keys().cloned().collect();
        let changes = Changes { annotations, data };
        secrets::patch(&self.shared.client, &fresh.secret.head, &changes).await?;
        tracing::info!(secret = %self.key, step = Stage::Outputs.name(), ?written, "the outputs are written from the pair that is there");
        Ok(Outcome::Renewed)
    }
}
