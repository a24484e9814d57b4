//! What the CA does beside what it is asked for: it revokes, issues for another time than before, or loses what it knows.

use super::*;

/// Days that a certificate lasts.
const LASTS: [i64; 4] = [6, 30, 47, 90];

impl Life {
    /// When the next whim is, if there is to be one.
    pub(super) fn after_whim(&mut self, lively: bool) -> Option<Instant> {
        let days = self.plan.whims;
        let seconds = (days > 0 && lively).then(|| self.whims.between(1, 2 * days * DAY))?;
        Some(Instant::now() + Duration::from_secs(seconds))
    }

    /// The CA does something.
    pub(super) fn whim(&mut self) {
        let what = self.whims.below(3);
        let key = self.whims.pick(&self.secrets).clone();
        let days = *self.whims.pick(&LASTS);
        let mut now = self.world.now();
        match what {
            0 => {
                let leaf = { now.objects.get(&key) }.and_then(|secret| now.leaf_in(secret));
                if let Some(leaf) = leaf {
                    now.ca.wants_back(leaf);
                    now.story
                        .tell("ca", format_args!("wants #{leaf} of {key} replaced"));
                }
            }
            1 => {
                now.ca.lifetime = days * 86_400;
                now.story
                    .tell("ca", format_args!("issues for {days} days from now on"));
            }
            _ => {
                now.ca.wipe();
                now.story
                    .tell("ca", "has lost its accounts, orders and certificates");
                now.checks.trouble = clock::now();
                // What it has issued and nobody has fetched yet is lost with them.
                for key in &self.secrets {
                    now.caused(key);
                }
            }
        }
    }
}
