//! What must hold, looked for in the world alone and never in the operator.
//!
//! *Never*: what is looked at with each write, each order and each certificate. *In the end*: what has to be so when
//! nobody wants anything any more and nothing goes wrong.

use std::collections::{BTreeMap, BTreeSet};

use cert_renew_core::secret::keys;
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::Value;

use crate::authority::Issued;
use crate::clock;
use crate::objects::{DEPLOYMENTS, Key, Kind, LEASES, PODS, SECRETS};
use crate::world::{HOME, State};

const DAY: i64 = 86_400;
/// Longest way of a write: a leaf may have come to its Secret meanwhile.
const LATE: i64 = 60;
/// The weekly budgets of the operator hold what users cause too often.
const BUDGETS: i64 = 8 * DAY;

/// What is known of what must hold.
#[derive(Debug, Default)]
pub struct Checks {
    /// The minor version that the API server says it has.
    pub minor: String,
    /// Whether replicas have to hold the Lease to write.
    pub elects: bool,
    /// What did not hold.
    pub violations: Vec<String>,
    /// When something last stood in the operator's way: weather, an outage, a replica's death.
    pub trouble: i64,
    secrets: BTreeMap<Key, Secret>,
    restarts: BTreeSet<(String, String, String, usize)>,
    told: BTreeSet<String>,
}

/// What is known of a Secret.
#[derive(Debug, Default)]
struct Secret {
    /// The last instant at which a user or the CA gave cause for a new certificate.
    cause: i64,
    /// The last certificate that was issued for it.
    last: Option<usize>,
    /// The leaves that came to it, the present one last, and since when it is there.
    leaves: Vec<Option<usize>>,
    since: i64,
    /// When a certificate was last asked for that has to be there in the end.
    asked: Option<i64>,
}

/// The Deployment that uses a Secret.
#[must_use]
pub fn user_of(key: &Key) -> Key {
    Key::new(
        &DEPLOYMENTS,
        &key.namespace,
        &key.name.replacen("tls", "web", 1),
    )
}

/// The Secret that these names are for: they are `…SECRET.NAMESPACE.example.com`.
#[must_use]
pub fn secret_of(name: &str) -> Option<Key> {
    let mut labels = name.rsplit('.').skip(2);
    let (namespace, secret) = (labels.next()?, labels.next()?);
    Some(Key::new(&SECRETS, namespace, secret))
}

/// An annotation.
#[must_use]
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"][key].as_str()
}

/// The text under a data key of a Secret.
#[must_use]
pub fn data(object: &Value, key: &str) -> Option<String> {
    use base64::Engine as _;
    let value = object["data"][key].as_str()?;
    let bytes = base64::prelude::BASE64_STANDARD.decode(value).ok()?;
    String::from_utf8(bytes).ok()
}

impl State {
    /// The certificate in a Secret.
    #[must_use]
    pub fn leaf_in(&self, secret: &Value) -> Option<usize> {
        self.ca.find(&data(secret, "tls.crt")?)
    }

    /// Whether this fault is put on.
    #[must_use]
    pub fn planted_is(&self, name: &str) -> bool {
        self.planted.is_some_and(|planted| planted.0 == name)
    }

    /// Notes what did not hold; each kind of it once.
    pub fn violated(&mut self, what: String) {
        let kind: String = what.chars().filter(|it| !it.is_ascii_digit()).collect();
        if self.checks.told.insert(kind) {
            self.story.tell("CHECK", &what);
            self.checks
                .violations
                .push(format!("{}  {what}", clock::stamp()));
        }
    }

    /// Notes that a user, or the CA, has given cause for a new certificate.
    pub fn caused(&mut self, key: &Key) {
        let now = clock::now();
        self.checks.secrets.entry(key.clone()).or_default().cause = now;
        self.saw(key);
    }

    /// Notes that a certificate is asked for, and has to be there in the end.
    pub fn asked(&mut self, key: &Key) {
        let known = self.checks.secrets.entry(key.clone()).or_default();
        known.asked = Some(clock::now());
    }

    /// Notes the leaf in a Secret.
    pub fn saw(&mut self, key: &Key) {
        let leaf = self.objects.get(key).cloned();
        let leaf = leaf.and_then(|secret| self.leaf_in(&secret));
        let known = self.checks.secrets.entry(key.clone()).or_default();
        if known.leaves.last() != Some(&leaf) {
            known.leaves.push(leaf);
            known.since = clock::now();
        }
    }

    fn leads(&self, replica: &str) -> bool {
        if !self.checks.elects {
            return true;
        }
        let lease = self.objects.get(&Key::new(&LEASES, HOME, "cert-renew"));
        let holder = lease.and_then(|lease| lease["spec"]["holderIdentity"].as_str());
        holder.is_some_and(|holder| holder.rsplit_once('_').is_some_and(|(of, _)| of == replica))
    }

    /// A replica has ordered, or tried to.
    pub fn ordered(&mut self, replica: &str, names: &[String], code: u16) {
        let what = names.first().cloned().unwrap_or_default();
        self.story
            .tell(replica, format_args!("orders {what}: {code}"));
        if !self.leads(replica) {
            self.violated(format!("{replica} orders {what} and does not lead"));
        }
        if let Some(until) = self
            .ca
            .closed_for(replica)
            .filter(|until| clock::now() < *until)
        {
            let early = until - clock::now();
            self.violated(format!(
                "{what} is ordered {early} s before the CA's Retry-After"
            ));
        }
        if code == 429 {
            self.violated(format!("{what} is ordered more often than the CA allows"));
        }
    }

    /// The CA has issued.
    pub fn issued(&mut self, replica: &str, number: usize) {
        let it = self.ca.issued[number].clone();
        let name = it.names.first().cloned().unwrap_or_default();
        self.story.tell(
            "ca",
            format_args!("issues #{number} for {}", it.names.join(" ")),
        );
        if !self.leads(replica) {
            self.violated(format!("{replica} finalizes {name} and does not lead"));
        }
        let Some(key) = secret_of(&name) else {
            return self.violated(format!("{name} is nobody's"));
        };
        let known = self.checks.secrets.entry(key.clone()).or_default();
        let (cause, before) = (known.cause, known.last.replace(number));
        let Some(before) = before else { return };
        let former: &Issued = &self.ca.issued[before];
        // Of short-lived ones half is left, and renewals are spread over a sixtieth before.
        let most = (former.not_after - former.not_before) * 11 / 20;
        let is_fresh = former.not_after - clock::now() > most;
        if is_fresh
            && former.names == it.names
            && former.wanted_back.is_none()
            && cause < former.ordered
        {
            self.violated(format!(
                "#{number} is issued for {key} without a cause: it has #{before}"
            ));
        }
    }

    /// A replica is about to patch.
    pub fn patches(&mut self, key: &Key, patch: &Value) {
        let guarded = key.kind == &DEPLOYMENTS || key.kind == &SECRETS && key.namespace != HOME;
        let metadata = &patch["metadata"];
        if guarded && (metadata["uid"].is_null() || metadata["resourceVersion"].is_null()) {
            self.violated(format!("{key} is patched without saying which version"));
        }
    }

    /// A replica has changed an object.
    pub fn wrote(
        &mut self,
        replica: &str,
        key: &Key,
        before: Option<&Value>,
        after: Option<&Value>,
    ) {
        if key.kind != &LEASES && !self.leads(replica) {
            self.violated(format!("{replica} writes {key} and does not lead"));
        }
        if key.kind == &DEPLOYMENTS {
            self.restarted(key, before, after);
        }
        if key.kind != &SECRETS || key.namespace == HOME {
            return;
        }
        let (Some(before), Some(after)) = (before, after) else {
            return self.violated(format!("{key} is made or deleted"));
        };
        if annotation(before, keys::ISSUER).is_none() {
            self.violated(format!("{key} is written, and is not annotated"));
        }
        if before["data"] != after["data"] {
            self.paired(key, after);
            self.saw(key);
        }
        let rolled_out = annotation(after, keys::ROLLED_OUT);
        let former = annotation(before, keys::ROLLED_OUT);
        if let (Some(text), Some(former)) = (rolled_out, former)
            && text != former
        {
            let fingerprint = text.split(' ').next().unwrap_or_default().to_owned();
            self.rolled_out(key, &fingerprint);
        }
    }

    /// The pair has to match and to be valid now.
    fn paired(&mut self, key: &Key, secret: &Value) {
        let Some(leaf) = self.leaf_in(secret) else {
            return self.violated(format!("{key} is given what the CA has not issued"));
        };
        let it = &self.ca.issued[leaf];
        let pem = data(secret, "tls.key").unwrap_or_default();
        let matches = KeyPair::from_pem(&pem).is_ok_and(|pair| pair.der_bytes() == it.key);
        let is_valid = it.not_before <= clock::now() && clock::now() < it.not_after;
        self.story.tell("world", format_args!("{key} has #{leaf}"));
        if !matches {
            self.violated(format!("{key} is given #{leaf} with another key"));
        }
        if !is_valid {
            self.violated(format!("{key} is given #{leaf}, which is not valid now"));
        }
    }

    /// `rolled-out` names a leaf: no pod may have an older one.
    fn rolled_out(&mut self, key: &Key, fingerprint: &str) {
        let number = self.ca.by_fingerprint(fingerprint);
        let named = number.map_or_else(|| fingerprint.to_owned(), |it| format!("#{it}"));
        self.story
            .tell("world", format_args!("{key} is rolled out with {named}"));
        let leaves = self.checks.secrets.get(key);
        let leaves = leaves.map_or_else(Vec::new, |known| known.leaves.clone());
        let came = |leaf| leaves.iter().rposition(|it| *it == leaf);
        let older = self.served(key).into_iter();
        let older = { older }.find(|(_, served)| came(*served) < came(number));
        if let Some((pod, served)) = older {
            let served = served.map_or_else(|| "none".to_owned(), |it| format!("#{it}"));
            self.violated(format!(
                "{key} has rolled-out {named}, and {pod} serves {served}"
            ));
        }
    }

    /// The pods that use a Secret, with what each serves.
    #[must_use]
    pub fn served(&self, key: &Key) -> Vec<(String, Option<usize>)> {
        let mut all = self.all_served(Some(&key.namespace));
        all.remove(key).unwrap_or_default()
    }

    /// The same for every Secret, of a namespace or of all: one look at each pod.
    fn all_served(&self, namespace: Option<&str>) -> BTreeMap<Key, Vec<(String, Option<usize>)>> {
        let mut all: BTreeMap<Key, Vec<(String, Option<usize>)>> = BTreeMap::new();
        for (of, pod) in self.objects.list(&PODS, namespace) {
            let metadata = &pod["metadata"];
            let annotations = metadata["annotations"].as_object().into_iter().flatten();
            for (name, value) in annotations.filter(|_| metadata["deletionTimestamp"].is_null()) {
                let secret = name.strip_prefix("served/");
                if let (Some(secret), Some(served)) = (secret, value.as_str()) {
                    let key = Key::new(&SECRETS, &of.namespace, secret);
                    let pods = all.entry(key).or_default();
                    pods.push((of.name.clone(), served.parse().ok()));
                }
            }
        }
        all
    }

    /// A template was changed: for a leaf that is in its Secret, and once.
    fn restarted(&mut self, key: &Key, before: Option<&Value>, after: Option<&Value>) {
        let (Some(before), Some(after)) = (before, after) else {
            return self.violated(format!("{key} is made or deleted"));
        };
        let template = |object: &Value| object["spec"]["template"].clone();
        if template(before) == template(after) {
            return;
        }
        let annotations = |object: &Value| {
            let all = &object["spec"]["template"]["metadata"]["annotations"];
            all.as_object().cloned().unwrap_or_default()
        };
        let former = annotations(before);
        let changed = annotations(after).into_iter();
        let changed = changed.filter(|(name, value)| former.get(name) != Some(value));
        let mut causes = Vec::new();
        for (name, value) in changed {
            let Some(secret) = name.strip_prefix(keys::LEAF_PREFIX) else {
                continue;
            };
            let fingerprint = value.as_str().and_then(|it| it.split([' ', '.']).next());
            let leaf = fingerprint.and_then(|it| self.ca.by_fingerprint(it));
            causes.push((
                Key::new(&SECRETS, &key.namespace, secret),
                name,
                value.to_string(),
                leaf,
            ));
        }
        let leaves: Vec<String> = { causes.iter() }
            .map(|(secret, _, _, leaf)| match leaf {
                Some(leaf) => format!("{}#{leaf}", secret.name),
                None => format!("{}?", secret.name),
            })
            .collect();
        let leaves = leaves.join(" ");
        self.story
            .tell("world", format_args!("{key} restarts for {leaves}"));
        let uid = after["metadata"]["uid"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let mut is_new = false;
        for (secret, name, value, leaf) in causes {
            let Some(known) = self.checks.secrets.get(&secret) else {
                self.violated(format!(
                    "{key} is restarted for {secret}, which is not managed"
                ));
                continue;
            };
            let count = known.leaves.len();
            let before = known.leaves.iter().nth_back(1);
            let lately = clock::now() - known.since < LATE && before == Some(&leaf);
            if known.leaves.last() != Some(&leaf) && !lately {
                self.violated(format!(
                    "{key} is restarted for a leaf that {secret} has no more"
                ));
            }
            is_new |= self
                .checks
                .restarts
                .insert((uid.clone(), name, value, count));
        }
        if !is_new {
            self.violated(format!("{key} is restarted again, or for nothing"));
        }
    }

    /// Looks at what is served: nothing may end that could have been renewed.
    pub fn look_at_ends(&mut self) {
        let now = clock::now();
        if !self.weather.ca_up || !self.weather.api_up {
            self.checks.trouble = now;
        }
        let mut served = self.all_served(None);
        let mut ended = Vec::new();
        for (key, known) in &self.checks.secrets {
            let Some(secret) = self.objects.get(key) else {
                continue;
            };
            let paused = annotation(secret, keys::PAUSED) == Some("true");
            let untroubled = now - self.checks.trouble.max(known.cause + BUDGETS);
            // Every write of a Secret's data has been seen.
            let held = known.leaves.last().copied().flatten();
            let of_secret = held.map(|leaf| (key.to_string(), leaf));
            let of_pods = served.remove(key).unwrap_or_default().into_iter();
            let rolls = !self.broken.contains(&user_of(key));
            let of_pods = of_pods.filter(|_| rolls);
            let of_pods = of_pods.filter_map(|(pod, served)| Some((format!("pod {pod}"), served?)));
            for (whose, leaf) in of_secret.into_iter().chain(of_pods) {
                let it = &self.ca.issued[leaf];
                let third = (it.not_after - it.not_before) / 3;
                if !paused && it.not_after < now && untroubled > third {
                    ended.push(format!(
                        "{whose} has #{leaf}, which has ended, and nothing stood in the way"
                    ));
                }
            }
        }
        for what in ended {
            self.violated(what);
        }
    }

    /// Looks at the end of all: everything is renewed, rolled out and served, and nothing is left.
    pub fn look_at_the_end(&mut self) {
        let now = clock::now();
        let mut wrong = Vec::new();
        for (key, known) in &self.checks.secrets {
            let Some(secret) = self.objects.get(key) else {
                continue;
            };
            let line = annotation(secret, keys::STATE)
                .unwrap_or_default()
                .to_owned();
            let Some(leaf) = self.leaf_in(secret) else {
                wrong.push(format!("{key} has no certificate in the end: {line}"));
                continue;
            };
            let it = &self.ca.issued[leaf];
            let quarter = (it.not_after - it.not_before) / 4;
            if it.not_after - now < quarter {
                wrong.push(format!("{key} is not renewed in the end: {line}"));
            }
            if known.asked.is_some_and(|at| it.ordered < at) {
                wrong.push(format!(
                    "{key} has not been renewed since a certificate was asked for: {line}"
                ));
            }
            if let Some(names) = annotation(secret, keys::NAMES) {
                let mut names: Vec<String> =
                    names.split(',').map(|it| it.trim().to_owned()).collect();
                names.sort();
                if names != it.names {
                    wrong.push(format!(
                        "{key} has not the names that it asks for in the end: {line}"
                    ));
                }
            }
            if self.broken.contains(&user_of(key)) {
                continue;
            }
            let rolled_out = annotation(secret, keys::ROLLED_OUT).unwrap_or_default();
            if rolled_out.split(' ').next() != Some(it.fingerprint.as_str()) {
                wrong.push(format!("{key} is not rolled out in the end: {line}"));
            }
            for (pod, served) in self.served(key) {
                if served != Some(leaf) {
                    wrong.push(format!(
                        "pod {pod} does not serve what {key} has in the end: {line}"
                    ));
                }
            }
        }
        let records = self.objects.list(&SECRETS, Some(HOME));
        let record = records.filter(|(_, secret)| secret["type"] == "cert-renew.io/order-record");
        wrong.extend(record.map(|(key, _)| format!("the order record {key} is left in the end")));
        let routes = Kind::of("networking.k8s.io/v1", "ingresses");
        let routes = routes
            .into_iter()
            .flat_map(|kind| self.objects.list(kind, Some(HOME)));
        wrong.extend(routes.map(|(key, _)| format!("the route {key} is left in the end")));
        let open = self.ca.open_orders();
        if open > 0 {
            wrong.push(format!("{open} orders are left open at the CA in the end"));
        }
        for what in wrong {
            self.violated(what);
        }
    }
}
