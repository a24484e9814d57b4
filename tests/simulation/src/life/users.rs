//! What users do to the Secrets, the Deployments and the config.

use super::*;

/// The number of the act of emptying a Secret.
pub(super) const EMPTIES: u64 = 3;

impl Life {
    pub(super) fn annotate(&self, key: &Key, name: &str, value: Option<String>) {
        let mut now = self.world.now();
        now.objects.set(key, |secret| {
            let annotations = &mut secret["metadata"]["annotations"];
            match value {
                Some(value) => annotations[name] = json!(value),
                None => _ = annotations.as_object_mut().and_then(|all| all.remove(name)),
            }
        });
        now.caused(key);
    }

    /// A user does something.
    pub(super) fn act(&mut self) -> Result<()> {
        let key = self.chance.pick(&self.secrets).clone();
        let drawn = self.chance.below(11);
        let what = self.plan.act.unwrap_or(drawn);
        // All is drawn before anything is done, so that an act that is left out changes no later one.
        let number = match what {
            0 | 7 => self.chance.draw(),
            1 | 2 => self.chance.below(3),
            8 => self.chance.between(1, 4),
            9 => self.chance.below(4),
            10 => self.chance.between(1, 3),
            _ => 0,
        };
        let held = {
            let now = self.world.now();
            now.objects.get(&key).map(|secret| secret["data"].clone())
        };
        self.acts += 1;
        if !self.takes(Part::Act(self.acts)) || held.is_none() {
            return Ok(());
        }
        let tell = |what: &str| self.world.tell("user", format_args!("{what} {key}"));
        match what {
            0 => {
                tell("asks for a new certificate of");
                self.annotate(&key, keys::RENEW_NOW, Some(number.to_string()));
            }
            1 | 2 => {
                tell("changes the names of");
                let name = format!("{}.{}.example.com", key.name, key.namespace);
                let names = match number {
                    0 => name,
                    1 => format!("{name}, www.{name}"),
                    _ => format!("api.{name}, {name}"),
                };
                self.annotate(&key, keys::NAMES, Some(names));
            }
            EMPTIES => {
                tell("empties");
                self.before.insert(key.clone(), held.unwrap_or_default());
                let empty = json!({"tls.crt": "", "tls.key": ""});
                self.hold(&key, &empty);
            }
            4 => {
                let Some(before) = self.before.remove(&key).filter(|it| !it.is_null()) else {
                    self.before.insert(key.clone(), held.unwrap_or_default());
                    return Ok(());
                };
                tell("puts back what was in");
                self.hold(&key, &before);
            }
            5 => {
                if self.paused.remove(&key).is_some() {
                    tell("resumes");
                    self.annotate(&key, keys::PAUSED, None);
                } else {
                    tell("pauses");
                    self.paused.insert(key.clone(), Instant::now());
                    self.annotate(&key, keys::PAUSED, Some("true".into()));
                }
            }
            6 => {
                tell("deletes and makes again");
                let mut now = self.world.now();
                let deleted = now.objects.delete(&key, &Value::Null);
                let deleted = deleted.map_err(|it| anyhow!("{}", it.message))?;
                let mut again = Value::clone(&deleted);
                let annotations = again["metadata"]["annotations"].as_object_mut();
                if let Some(annotations) = annotations {
                    annotations.retain(|name, _| !name.starts_with("state."));
                }
                let again = json!({
                    "metadata": {"annotations": again["metadata"]["annotations"]},
                    "type": again["type"], "data": again["data"],
                });
                let made = now.objects.create(&key, again);
                made.map_err(|refusal| anyhow!("{}", refusal.message))?;
                now.caused(&key);
            }
            7 => {
                let of = user_of(&key);
                self.world.tell("user", format_args!("restarts {of}"));
                let value = number.to_string();
                self.world.now().objects.set(&of, |it| {
                    it["spec"]["template"]["metadata"]["annotations"]["restarted"] = json!(value);
                });
            }
            8 => {
                let of = user_of(&key);
                self.world
                    .tell("user", format_args!("scales {of} to {number}"));
                self.world
                    .now()
                    .objects
                    .set(&of, |it| it["spec"]["replicas"] = json!(number));
            }
            9 => {
                tell("writes nonsense on");
                let value = match number {
                    0 => "soon",
                    1 => "30",
                    2 => "33%",
                    _ => "10d",
                };
                self.annotate(&key, keys::RENEW_BEFORE, Some(value.to_owned()));
            }
            _ => {
                self.world
                    .tell("user", format_args!("changes the config: {number}"));
                for replica in self.replicas.iter().flatten() {
                    replica.configure(config(number)?);
                }
            }
        }
        Ok(())
    }

    pub(super) fn hold(&self, key: &Key, data: &Value) {
        let mut now = self.world.now();
        now.objects.set(key, |secret| secret["data"] = data.clone());
        now.caused(key);
    }
}
