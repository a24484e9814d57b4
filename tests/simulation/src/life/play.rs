//! A scene, played: its deeds at their instants, and what another program does to the Secret again and again.

use anyhow::Context as _;

use super::*;
use crate::scenes::Deed;

/// How long before its instant a certificate begins that another program puts there.
const BACKDATED: i64 = 3_600;

/// What another program does again and again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Habit {
    /// It changes an annotation every so many seconds.
    Touch(u64),
    /// It copies the Secret every so many seconds.
    Copy(u64),
}

impl Life {
    /// Does what is due of the scene, and gives when the next of it is.
    pub(super) fn play(&mut self) -> Result<Option<Instant>> {
        let Some(scene) = self.plan.scene else {
            return Ok(None);
        };
        let key = self.secrets.first().cloned();
        let (key, now) = (key.context("a scene has a Secret")?, Instant::now());
        let due = |seconds: u64| self.begun + Duration::from_secs(seconds);
        let next = scene.deeds.get(self.done).map(|(seconds, _)| due(*seconds));
        if next.is_some_and(|next| next <= now) {
            self.perform(scene.deeds[self.done].1, &key)?;
            self.done += 1;
            return Ok(Some(now));
        }
        if let Some((habit, at)) = self.habit
            && at <= now
        {
            let pause = match habit {
                Habit::Touch(seconds) => {
                    self.touch(&key);
                    seconds
                }
                Habit::Copy(seconds) => {
                    self.copy(&key);
                    seconds
                }
            };
            self.habit = Some((habit, now + Duration::from_secs(pause)));
        }
        let again = self.habit.map(|(_, at)| at);
        Ok(next.into_iter().chain(again).min())
    }

    fn perform(&mut self, deed: Deed, key: &Key) -> Result<()> {
        self.world.tell("scene", format_args!("{deed:?}"));
        match deed {
            Deed::Annotate(name, value) => {
                self.annotate(key, name, Some(value.to_owned()));
                if name == keys::RENEW_NOW {
                    self.world.now().asked(key);
                }
            }
            Deed::Bare(name) => self.annotate(key, name, None),
            Deed::Empty => self.hold(key, &json!({"tls.crt": "", "tls.key": ""})),
            Deed::Replace => self.replace(key),
            Deed::Configure(text) => {
                self.text = Some(text);
                for replica in self.replicas.iter().flatten() {
                    replica.configure(parsed(text)?);
                }
            }
            Deed::Break => _ = self.world.now().broken.insert(user_of(key)),
            Deed::Touch(seconds) => self.habit = Some((Habit::Touch(seconds), Instant::now())),
            Deed::Copy(seconds) => {
                self.deploy(&copy_of(key), 2)?;
                self.habit = Some((Habit::Copy(seconds), Instant::now()));
            }
            Deed::Lasts(seconds) => self.world.now().ca.lifetime = seconds,
            Deed::Reach(reaches) => self.world.now().ca.reaches = reaches,
            Deed::Forget => self.world.now().ca.forgets = true,
            Deed::WantBack => {
                let mut now = self.world.now();
                let leaf = { now.objects.get(key) }.and_then(|secret| now.leaf_in(secret));
                now.ca
                    .wants_back(leaf.context("a certificate is wanted back")?);
                now.asked(key);
            }
            Deed::Wipe => {
                let mut now = self.world.now();
                now.ca.wipe();
                now.caused(key);
            }
            Deed::Clock(seconds) => clock::jump(seconds),
        }
        Ok(())
    }

    /// Puts another certificate into a Secret, as another program does.
    fn replace(&self, key: &Key) {
        let name = format!("{}.{}.example.com", key.name, key.namespace);
        let data = {
            let mut now = self.world.now();
            let begins = clock::now() - BACKDATED;
            let ends = begins + now.ca.lifetime;
            let (leaf, private) = now.ca.give(&[name], begins, ends);
            json!({"tls.crt": encoded(&now.ca.issued[leaf].chain), "tls.key": encoded(&private)})
        };
        self.hold(key, &data);
    }

    fn touch(&self, key: &Key) {
        let mut now = self.world.now();
        let version = now.objects.version().to_string();
        now.objects.set(key, |secret| {
            secret["metadata"]["annotations"]["example.com/touched"] = json!(version);
        });
    }

    /// Copies a Secret with all of its annotations, if it has changed.
    fn copy(&self, key: &Key) {
        let mut now = self.world.now();
        let Some(source) = now.objects.get(key).cloned() else {
            return;
        };
        let (copy, annotations) = (copy_of(key), &source["metadata"]["annotations"]);
        let version = &source["metadata"]["resourceVersion"];
        let known = now.objects.get(&copy).cloned();
        match known {
            Some(known) if known["metadata"]["labels"]["copied"] == *version => return,
            Some(_) => now.objects.set(&copy, |secret| {
                secret["metadata"]["labels"] = json!({"copied": version});
                secret["metadata"]["annotations"] = annotations.clone();
                secret["data"] = source["data"].clone();
            }),
            None => {
                let made = json!({
                    "metadata": {"labels": {"copied": version}, "annotations": annotations},
                    "type": source["type"], "data": source["data"],
                });
                let made = now.objects.create(&copy, made);
                made.unwrap_or_else(|refusal| panic!("{}", refusal.message));
            }
        }
        now.saw(&copy);
        now.story
            .tell("copier", format_args!("brings {key} to {copy}"));
    }
}

/// The copy of a Secret, in another namespace.
fn copy_of(key: &Key) -> Key {
    Key::new(&SECRETS, "copies", &key.name)
}
