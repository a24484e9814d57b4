//! One run: a cluster with Secrets and Deployments, users who change their minds, weather, and the looks at it all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, anyhow};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cert_renew_core::config::Config;
use cert_renew_core::election::Times;
use cert_renew_core::secret::keys;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::authority::DIRECTORY;
use crate::chance::Chance;
use crate::checks::user_of;
use crate::clock;
use crate::controllers;
use crate::leaks::Log;
use crate::objects::{Key, SECRETS};
use crate::operator::Replica;
use crate::parts::{self, Part};
use crate::planted::Planted;
use crate::scenes::{self, Scene};
use crate::story::Story;
use crate::world::{Requests, World};

mod play;
mod users;
mod whims;

use self::play::Habit;

const DAY: u64 = 86_400;
/// Time without weather and wishes, in which all has to come right: the weekly budgets, and a day of back-off.
const CALM: u64 = 16 * DAY;

/// How a run is lived.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its seed.
    pub seed: u64,
    /// Number of Secrets.
    pub secrets: usize,
    /// Days with weather and wishes.
    pub days: u64,
    /// Seconds that a certificate lasts.
    pub lifetime: i64,
    /// Replicas; with one there is no Lease.
    pub replicas: usize,
    /// Of a thousand requests to the API server, those that go wrong.
    pub api: u64,
    /// The same of those to the CA.
    pub ca: u64,
    /// Of a thousand writes, those at which a replica dies.
    pub deaths: u64,
    /// Mean hours between two acts of users; 0: there are none.
    pub acts: u64,
    /// Mean days between two outages; 0: there are none.
    pub outages: u64,
    /// Mean days between two things that the CA does beside what it is asked for; 0: there are none.
    pub whims: u64,
    /// Of a thousand changes that watches tell, those that come late.
    pub lags: u64,
    /// Users do this alone, by its number.
    pub act: Option<u64>,
    /// A scene to play.
    pub scene: Option<&'static Scene>,
    /// A fault to put on.
    pub planted: Option<Planted>,
    /// These parts alone, of those that the seed has.
    pub among: Option<BTreeSet<Part>>,
    /// Whether the run ends with the first thing that does not hold.
    pub until_one: bool,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// What did not hold.
    pub violations: Vec<String>,
    /// The last lines of the story.
    pub last: Vec<String>,
    /// Number of lines, and a digest of all.
    pub digest: (u64, u64),
    /// Simulated seconds.
    pub seconds: u64,
    /// Certificates issued.
    pub issued: usize,
    /// Requests of the replicas.
    pub requests: Requests,
    /// What the run was made of, and what happened in it.
    pub parts: BTreeSet<Part>,
}

impl Plan {
    /// The plan that a seed stands for: weather, users and certificates of every kind.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let days = [6, 30, 47, 90];
        let lifetime = *chance.pick(&days) * 86_400;
        let is_storm = chance.in_thousand(500);
        Self {
            seed,
            secrets: usize::try_from(chance.between(1, 6)).unwrap_or(1),
            days: if is_storm {
                chance.between(2, 5)
            } else {
                chance.between(30, 60)
            },
            lifetime,
            replicas: if is_storm { 2 } else { 1 },
            api: *chance.pick(&[0, 5, 30, 100]),
            ca: *chance.pick(&[0, 10, 50, 150]),
            deaths: *chance.pick(&[0, 5, 30]),
            acts: if is_storm {
                chance.between(2, 12)
            } else {
                chance.between(24, 200)
            },
            outages: *chance.pick(&[0, 2, 20]),
            whims: 0,
            lags: 0,
            act: None,
            scene: None,
            planted: None,
            among: None,
            until_one: false,
        }
    }

    /// The same seed with a CA that has whims and watches that lag behind.
    #[must_use]
    pub fn wild(seed: u64) -> Self {
        let of_seed = Self::of(seed);
        Self {
            whims: (of_seed.days / 5).max(1),
            lags: 20,
            ..of_seed
        }
    }

    /// The same with a fault put on, and with what brings it out.
    #[must_use]
    pub fn with(self, planted: Planted) -> Self {
        let planted_on = Some(planted);
        match planted.0 {
            // A Secret is emptied six times a day, and the count of its certificates is read again by each new leader.
            "uncounted" => Self {
                secrets: 1,
                days: 5,
                lifetime: 90 * 86_400,
                replicas: 2,
                api: 0,
                ca: 0,
                deaths: 30,
                acts: 4,
                act: Some(users::EMPTIES),
                outages: 0,
                planted: planted_on,
                ..self
            },
            _ => Self {
                planted: planted_on,
                ..self
            },
        }
    }

    /// That of a scene.
    #[must_use]
    pub fn scene(name: &str) -> Option<Self> {
        let scene = scenes::named(name)?;
        Some(Self {
            secrets: 1,
            lifetime: scene.lasts.0,
            replicas: 1,
            api: 0,
            ca: 0,
            deaths: 0,
            acts: 0,
            outages: 0,
            scene: Some(scene),
            ..Self::of(1)
        })
    }

    fn has(&self, part: Part) -> bool {
        self.among
            .as_ref()
            .is_none_or(|among| among.contains(&part))
    }

    /// Lives it.
    ///
    /// # Errors
    /// When the run itself cannot be made.
    pub fn live(self, printed: bool) -> Result<Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()?;
        runtime.block_on(async move {
            clock::begin();
            let life = Life::begin(self, printed)?;
            let _log = tracing::subscriber::set_default(Log::of(&life.world));
            life.live().await
        })
    }
}

struct Life {
    plan: Plan,
    world: World,
    chance: Chance,
    times: Option<Times>,
    replicas: Vec<Option<Replica>>,
    /// When a replica that has died is started again.
    again: Vec<Instant>,
    lives: u64,
    secrets: Vec<Key>,
    /// What users have taken away, to put it back: paused Secrets, and what a Secret held before.
    paused: BTreeMap<Key, Instant>,
    before: BTreeMap<Key, Value>,
    /// Acts and outages so far, and of these and the Secrets those that were not left out.
    acts: u64,
    outages: u64,
    parts: BTreeSet<Part>,
    /// How long the dead stay dead: by a chance of its own, so that one more death changes no user. The same for whims.
    pauses: Chance,
    whims: Chance,
    /// When the run began, how many of the scene's deeds are done, and its config.
    begun: Instant,
    done: usize,
    text: Option<&'static str>,
    /// What another program does again and again, and when it does so next.
    habit: Option<(Habit, Instant)>,
}

fn config(retry: u64) -> Result<Config> {
    let text = format!(
        "issuers:
  ca:
    directory: {DIRECTORY}
    allow: [{{namespaces: [\"*\"], names: [\"**.example.com\"]}}]
retry: {{base: {retry}m}}
"
    );
    parsed(&text)
}

/// As in the data of a Secret.
fn encoded(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

fn parsed(text: &str) -> Result<Config> {
    Config::parse(text).map_err(|faults| anyhow!("{faults}"))
}

impl Life {
    fn begin(plan: Plan, printed: bool) -> Result<Self> {
        let mut chance = Chance::new(plan.seed.wrapping_mul(3));
        let mut story = Story::new(printed);
        story.tell("plan", format_args!("{plan:?}"));
        let world = World::new(plan.seed, story);
        let times = (plan.replicas > 1).then(|| {
            // Ten times those of an installation: a renewal every two seconds is most of what happens in a year.
            let seconds = Duration::from_secs;
            Times::new(seconds(150), seconds(100), seconds(25)).map_err(|error| anyhow!("{error}"))
        });
        let times = times.transpose()?;
        let mut life = Self {
            secrets: Vec::new(),
            times,
            replicas: (0..plan.replicas).map(|_| None).collect(),
            again: vec![Instant::now(); plan.replicas],
            lives: 0,
            paused: BTreeMap::new(),
            before: BTreeMap::new(),
            acts: 0,
            outages: 0,
            parts: BTreeSet::new(),
            pauses: Chance::new(plan.seed.wrapping_mul(5)),
            whims: Chance::new(plan.seed.wrapping_mul(7)),
            begun: Instant::now(),
            done: 0,
            text: plan.scene.map(|scene| scene.config),
            habit: None,
            world,
            chance: Chance::new(chance.draw()),
            plan,
        };
        {
            let mut now = life.world.now();
            now.planted = life.plan.planted;
            now.checks.elects = times.is_some();
            now.checks.minor = (*chance.pick(&["33", "36"])).to_owned();
            now.ca.lifetime = life.plan.lifetime;
            now.ca.has_info = chance.in_thousand(700);
            now.ca.reuses = chance.in_thousand(500);
            now.ca.forgets = chance.in_thousand(300);
            if let Some(scene) = life.plan.scene {
                now.ca.has_info = scene.has_info;
                (now.ca.reuses, now.ca.forgets) = (false, false);
            }
            now.weather.api = life.plan.api;
            now.weather.ca = life.plan.ca;
            now.weather.deaths = life.plan.deaths;
            now.weather.lags = life.plan.lags;
            now.weather.only = life.plan.among.as_ref().map(parts::fates);
        }
        for number in 0..life.plan.secrets {
            life.make(number)?;
        }
        Ok(life)
    }

    /// A Secret, mostly with a certificate of some age, and a Deployment that mounts it.
    fn make(&mut self, number: usize) -> Result<()> {
        let namespace = format!("shop-{}", number % 3);
        let key = Key::new(&SECRETS, &namespace, &format!("tls-{number}"));
        let name = format!("{}.{namespace}.example.com", key.name);
        let age = i64::try_from(self.chance.below(self.plan.lifetime.unsigned_abs()))?;
        let is_empty = self.chance.in_thousand(150);
        let (age, is_empty) = match self.plan.scene {
            Some(scene) => (scene.lasts.1, false),
            None => (age, is_empty),
        };
        let replicas = self.chance.between(1, 3);
        self.secrets.push(key.clone());
        let part = Part::Secret(number as u64);
        if !self.plan.has(part) {
            return Ok(());
        }
        self.parts.insert(part);
        let mut now = self.world.now();
        let (certificate, private) = if is_empty {
            (String::new(), String::new())
        } else {
            let begins = clock::now() - age;
            let (leaf, private) = now.ca.give(
                std::slice::from_ref(&name),
                begins,
                begins + self.plan.lifetime,
            );
            (now.ca.issued[leaf].chain.clone(), private)
        };
        let mut annotations = json!({keys::ISSUER: "ca", keys::NAMES: name});
        for (name, value) in self.plan.scene.map_or(&[][..], |scene| scene.annotations) {
            annotations[*name] = json!(value);
        }
        let secret = json!({
            "metadata": {"annotations": annotations}, "type": "kubernetes.io/tls",
            "data": {"tls.crt": encoded(&certificate), "tls.key": encoded(&private)},
        });
        let made = now.objects.create(&key, secret);
        made.map_err(|refusal| anyhow!("{}", refusal.message))?;
        now.caused(&key);
        drop(now);
        if self.plan.scene.is_none_or(|scene| scene.is_used) {
            self.deploy(&key, replicas)?;
        }
        Ok(())
    }

    /// Makes the Deployment that mounts a Secret.
    fn deploy(&self, key: &Key, replicas: u64) -> Result<()> {
        let of = user_of(key);
        let volumes = json!([{"name": "tls", "secret": {"secretName": key.name}}]);
        let template = json!({
            "metadata": {"labels": {"app": of.name}, "annotations": {}},
            "spec": {"containers": [{"name": "web", "image": "web"}], "volumes": volumes},
        });
        let deployment = json!({
            "metadata": {}, "status": {},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": {"app": of.name}},
                "template": template,
            },
        });
        let made = self.world.now().objects.create(&of, deployment);
        made.map_err(|refusal| anyhow!("{}", refusal.message))?;
        tokio::spawn(controllers::look_after(self.world.clone(), of));
        Ok(())
    }

    async fn live(mut self) -> Result<Outcome> {
        // Pods of before.
        sleep(Duration::from_secs(60)).await;
        self.start()?;
        let (stormy, calm) = match self.plan.scene {
            Some(scene) => (scene.hours * 3_600, 0),
            None => (self.plan.days * DAY, CALM),
        };
        let stormy = Instant::now() + Duration::from_secs(stormy);
        self.until(stormy, true).await?;
        self.world.tell(
            "plan",
            "nothing goes wrong and nobody wants anything any more",
        );
        self.world.now().weather.clear();
        for (key, _) in std::mem::take(&mut self.paused) {
            self.annotate(&key, keys::PAUSED, None);
        }
        self.start()?;
        let quiet = Instant::now() + Duration::from_secs(calm);
        self.until(quiet, false).await?;
        self.world.now().look_at_the_end();
        for replica in self.replicas.iter_mut().filter_map(Option::take) {
            replica.end().await;
        }
        let now = self.world.now();
        let mut parts = std::mem::take(&mut self.parts);
        parts.extend(&now.weather.happened);
        Ok(Outcome {
            parts,
            violations: now.checks.violations.clone(),
            last: now.story.last().map(str::to_owned).collect(),
            digest: now.story.digest(),
            seconds: clock::passed().as_secs(),
            issued: now.ca.issued.len(),
            requests: now.requests,
        })
    }

    /// Starts the replicas that do not run.
    fn start(&mut self) -> Result<()> {
        for at in 0..self.replicas.len() {
            if self.replicas[at].is_none() {
                self.start_one(at)?;
            }
        }
        Ok(())
    }

    /// Lives until then, with users and outages or without.
    async fn until(&mut self, end: Instant, lively: bool) -> Result<()> {
        let mut look = Instant::now();
        let mut act = self.after(self.plan.acts * 3_600, lively);
        let mut outage = self.after(self.plan.outages * DAY, lively);
        let mut whim = self.after_whim(lively);
        let mut over: Option<Instant> = None;
        // A planted fault is found by one.
        let most = if self.plan.planted.is_some() || self.plan.until_one {
            0
        } else {
            5
        };
        loop {
            let at = Instant::now();
            if at >= end || self.world.now().checks.violations.len() > most {
                return Ok(());
            }
            for number in 0..self.replicas.len() {
                if self.replicas[number].is_none() && self.again[number] <= at {
                    self.start_one(number)?;
                }
            }
            if look <= at {
                self.world.now().look_at_ends();
                look = at + Duration::from_secs(3_600);
            }
            if act.is_some_and(|act| act <= at) {
                self.act()?;
                act = self.after(self.plan.acts * 3_600, lively);
            }
            if over.is_some_and(|over| over <= at) {
                self.world.tell("weather", "all can be reached again");
                let mut now = self.world.now();
                (now.weather.api_up, now.weather.ca_up, over) = (true, true, None);
            }
            if outage.is_some_and(|outage| outage <= at) {
                over = self.outage().map(|lasts| at + lasts).or(over);
                outage = self.after(self.plan.outages * DAY, lively);
            }
            if whim.is_some_and(|whim| whim <= at) {
                self.whim();
                whim = self.after_whim(lively);
            }
            let played = self.play()?;
            let dead = { self.replicas.iter().zip(&self.again) }
                .filter(|(replica, _)| replica.is_none())
                .map(|(_, again)| *again);
            let all = [Some(look), Some(end), act, outage, over, whim, played];
            let next = all.into_iter().flatten().chain(dead).min().unwrap_or(end);
            tokio::select! {
                biased;
                doomed = self.world.doomed() => for name in doomed {
                    self.bury(&name).await;
                },
                () = sleep_until(next) => {}
            }
        }
    }

    fn start_one(&mut self, at: usize) -> Result<()> {
        self.lives += 1;
        let name = format!("{}{}", ["a", "b"][at % 2], self.lives);
        let config = match self.text {
            Some(text) => parsed(text)?,
            None => config(1)?,
        };
        self.replicas[at] = Some(Replica::start(&self.world, &name, config, self.times)?);
        Ok(())
    }

    /// An instant at about this many seconds from now, if there is to be one.
    fn after(&mut self, seconds: u64, lively: bool) -> Option<Instant> {
        let seconds = (seconds > 0 && lively).then(|| self.chance.between(1, 2 * seconds))?;
        Some(Instant::now() + Duration::from_secs(seconds))
    }

    async fn bury(&mut self, name: &str) {
        let pause = Duration::from_millis(self.pauses.between(500, 90_000));
        for at in 0..self.replicas.len() {
            let is_it = self.replicas[at]
                .as_ref()
                .is_some_and(|it| *it.name == *name);
            if let Some(replica) = self.replicas[at].take_if(|_| is_it) {
                replica.die().await;
                self.again[at] = Instant::now() + pause;
                self.world.now().checks.trouble = clock::now();
            }
        }
    }

    /// Whether a part is not left out; it is noted then.
    fn takes(&mut self, part: Part) -> bool {
        let has = self.plan.has(part);
        if has {
            self.parts.insert(part);
        }
        has
    }

    /// Has the API server or the CA be gone for a while; gives how long, if that is not left out.
    fn outage(&mut self) -> Option<Duration> {
        let of_ca = self.chance.in_thousand(600);
        let most = if of_ca { 3 * DAY } else { 3_600 };
        let lasts = self.chance.between(10, most);
        self.outages += 1;
        if !self.takes(Part::Outage(self.outages)) {
            return None;
        }
        let mut now = self.world.now();
        if of_ca {
            now.weather.ca_up = false;
        } else {
            now.weather.api_up = false;
            if lasts > 300 {
                now.objects.compact();
            }
        }
        now.checks.trouble = clock::now();
        let what = if of_ca { "the CA" } else { "the API server" };
        now.story.tell(
            "weather",
            format_args!("{what} cannot be reached for {lasts} s"),
        );
        Some(Duration::from_secs(lasts))
    }
}
