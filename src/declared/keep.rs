//! Keeps Secrets as they are declared, during a term.
//!
//! Each look reads the declarations of a Secret and the Secret itself, decides, and ends in at most one write on the
//! Secret, which the API server refuses if it has changed since, and one on each ConfigMap that says how it stands; on a
//! route nothing is written, and what is wrong is told by an Event. A Secret is made by creation only, so that one that
//! exists is never replaced. What fails is looked at again.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cert_renew_core::declaration::Declaration;
use cert_renew_core::declaration::decide::{self, Decision, Wanted};
use cert_renew_core::declaration::mirror::{Mirror, REFUSED};
use cert_renew_core::declaration::register::{Made, Register};
use cert_renew_core::declaration::room::{MOST, MOST_OF_NAMESPACE, Refusal};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::State;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use super::Declared;
use super::lanes::Lanes;
use crate::cluster::Error;
use crate::cluster::declarations::{self, Version};
use crate::cluster::events::Reason;
use crate::cluster::secrets::{self, Changes};

/// Time between two looks at what is not as it is declared: a missing right, a Secret that is in the way.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// Most namespaces in which Secrets are looked after at the same time.
const PLACES: usize = 8;

/// Everything that a decision about a Secret depends on, as it was read a moment ago. One write uses it up.
struct Look {
    declarations: Vec<Declaration>,
    secret: Option<ThinSecret>,
}

impl Declared {
    /// Keeps Secrets as they are declared until the term ends.
    pub async fn keep(&self) {
        let mut lanes = Lanes::new();
        let mut again = tokio::time::interval(LOOK_AGAIN);
        let mut running = FuturesUnordered::new();
        let next = self.next();
        tokio::pin!(next);
        loop {
            while running.len() < PLACES
                && let Some((namespace, batch)) = lanes.next(Instant::now())
            {
                running.push(self.run(namespace, batch));
            }
            let goes_on = { lanes.goes_on() }.filter(|_| running.len() < PLACES);
            let pause = async {
                match goes_on {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                keys = &mut next => {
                    lanes.add(keys);
                    next.set(self.next());
                }
                Some((namespace, left, failed)) = running.next() => {
                    lanes.done(Instant::now(), &namespace, left, failed);
                }
                // At once for the first time: what changed while nobody led.
                _ = again.tick() => {
                    self.change(Register::doubt);
                    self.tell_refusals();
                }
                () = pause => {}
            }
        }
    }

    /// Reports once that a namespace has more declarations than are followed.
    fn tell_refusals(&self) {
        let refusals = self.register.lock().refusals();
        for Refusal {
            namespace,
            by,
            uid,
            refused,
            of_all,
        } in refusals
        {
            let too_many = if of_all {
                format!(
                    "all namespaces together have more than {MOST} declarations, and {namespace} the most of them"
                )
            } else {
                format!("namespace {namespace} has more than {MOST_OF_NAMESPACE} declarations")
            };
            let note = format!(
                "{too_many}: the youngest, such as {refused}, are not followed; when others are deleted, they are within \
                 ten minutes"
            );
            tracing::warn!(%namespace, note, "declarations are not followed");
            let by = Version {
                kind: by.kind,
                namespace: &namespace,
                name: &by.name,
                uid: &uid,
                resource_version: "",
            };
            let events = &self.shared.events;
            events.on(by.reference(), Reason::DeclarationRefused, &note);
        }
    }

    /// Looks after some Secrets of a namespace, up to the first failure that may pass; what is left, and whether it
    /// ended by one.
    async fn run(
        &self,
        namespace: Arc<str>,
        batch: Vec<SecretRef>,
    ) -> (Arc<str>, Vec<SecretRef>, bool) {
        let mut batch = batch.into_iter();
        while let Some(key) = batch.next() {
            if let Err(error) = self.look_after(&key).await {
                tracing::info!(secret = %key, %error, "a declared Secret cannot be looked after");
                if error.is_passing() || error.is_uncertain() {
                    return (namespace, std::iter::once(key).chain(batch).collect(), true);
                }
            }
        }
        (namespace, Vec::new(), false)
    }

    async fn look_after(&self, key: &SecretRef) -> Result<(), Error> {
        if self.shared.config().paused {
            return Ok(());
        }
        let look = self.look(key, &self.shared.config().class).await?;
        // It may have changed while the look waited for its answers.
        let (now, config) = (UnixTime::now(), self.shared.config());
        if config.paused {
            return Ok(());
        }
        if look.declarations.is_empty() {
            return self.undeclare(key, look, now).await;
        }
        let wanted = Wanted::of(key, &look.declarations);
        let decision = wanted.as_ref().map_or(Decision::Nothing, |wanted| {
            decide::decide(now, key, wanted, look.secret.as_ref(), &config)
        });
        let Look {
            declarations,
            secret,
        } = look;
        let mirror = match self
            .carry_out(key, &declarations, secret.as_ref(), decision)
            .await
        {
            Ok(mirror) => mirror,
            // It has changed since, or was made by somebody else.
            Err(Error::Conflict { .. } | Error::AlreadyExists { .. }) => {
                self.change(|register| register.again(key.clone()));
                return Ok(());
            }
            Err(error) if error.is_passing() || error.is_uncertain() => return Err(error),
            Err(error) => Mirror::refused(&error.to_string()),
        };
        for declaration in &declarations {
            if declaration.source.kind.is_route() {
                self.tell_route(key, declaration, wanted.as_ref(), &mirror);
            } else {
                self.tell(key, declaration, wanted.as_ref(), &mirror)
                    .await?;
            }
        }
        Ok(())
    }

    /// Reads a Secret, its declarations, and those that it says to have.
    async fn look(&self, key: &SecretRef, class: &str) -> Result<Look, Error> {
        let client = &self.shared.client;
        let mut sources = self.register.lock().sources(key);
        // A write on the Secret is refused if it has changed since.
        let secret = declarations::secret(client, key).await?;
        let recorded = { secret.as_ref() }.map(|it| decide::recorded(key, it));
        for source in recorded.unwrap_or_default() {
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        let mut found = Vec::new();
        for source in &sources {
            let object = declarations::get(client, &key.namespace, source).await?;
            let declared = object.map(|it| it.declarations(class));
            let declared = declared.into_iter().flatten();
            found.extend(declared.filter(|it| it.secret == key.name));
        }
        Ok(Look {
            declarations: found,
            secret,
        })
    }

    /// Does what was decided; what is to stand on the declarations then.
    async fn carry_out(
        &self,
        key: &SecretRef,
        declarations: &[Declaration],
        secret: Option<&ThinSecret>,
        decision: Decision,
    ) -> Result<Mirror, Error> {
        let client = &self.shared.client;
        match (decision, secret) {
            (Decision::Make(annotations), _) => {
                declarations::make(client, key, annotations).await?;
                tracing::info!(secret = %key, "a declared Secret is made");
                let note = format!(
                    "Secret {} is made, and its certificate is asked for",
                    key.name
                );
                for declaration in declarations {
                    self.event(key, declaration, Reason::Declared, &note);
                }
                Ok(Mirror::of_secret(&Head::default(), None))
            }
            (Decision::Change(changes), Some(secret)) => {
                let changed = patch(client, secret, changes).await?;
                tracing::info!(secret = %key, "a Secret has the settings that are declared");
                Ok(Mirror::of_secret(&changed.head, self.state_of(key)))
            }
            (Decision::Refuse(why), _) => Ok(Mirror::refused(&why)),
            (_, Some(secret)) => Ok(Mirror::of_secret(&secret.head, self.state_of(key))),
            (_, None) => Ok(Mirror::of_secret(&Head::default(), None)),
        }
    }

    /// Says on a declaration how its certificate stands, where that is news; what is wrong also by an Event.
    async fn tell(
        &self,
        key: &SecretRef,
        declaration: &Declaration,
        wanted: Option<&Wanted>,
        mirror: &Mirror,
    ) -> Result<(), Error> {
        let in_vain = wanted.map_or(&[][..], |it| it.in_vain(&declaration.source));
        let mirror = match &declaration.fault {
            Some(fault) => Mirror::refused(fault),
            None => mirror.clone(),
        };
        let mirror = mirror.with(in_vain);
        if mirror == declaration.told {
            return Ok(());
        }
        let version = version(key, declaration);
        let client = &self.shared.client;
        match declarations::tell(client, version, &mirror).await {
            Ok(()) => {}
            Err(Error::Conflict { .. } | Error::NotFound { .. }) => return Ok(()),
            Err(error) if error.is_passing() => return Err(error),
            // What is wrong is told by the Event below all the same.
            Err(error) => {
                tracing::debug!(secret = %key, %error, "its declaration does not say how it stands");
            }
        }
        let is_wrong = !in_vain.is_empty() || mirror.word.as_deref() == Some(REFUSED);
        let problems = mirror.problems.as_deref().filter(|_| is_wrong);
        let before = declaration.told.problems.as_deref();
        if let Some(problems) = problems.filter(|it| Some(*it) != before) {
            tracing::warn!(secret = %key, declaration = %declaration.source, problems, "a declaration is not followed");
            self.event(key, declaration, Reason::DeclarationRefused, problems);
        }
        Ok(())
    }

    /// Says by an Event on a route what is wrong with what it declares, where that is news.
    fn tell_route(
        &self,
        key: &SecretRef,
        declaration: &Declaration,
        wanted: Option<&Wanted>,
        mirror: &Mirror,
    ) {
        let source = &declaration.source;
        let refused = { mirror.problems.as_deref() }
            .filter(|_| mirror.word.as_deref() == Some(REFUSED))
            .map(ToOwned::to_owned);
        let refused = declaration.fault.clone().or(refused);
        let in_vain = wanted.map_or(&[][..], |it| it.in_vain(source));
        let contested = wanted.map_or(&[][..], |it| it.contested(source));
        let others = in_vain.iter().chain(contested).cloned();
        let all: Vec<String> = refused.into_iter().chain(others).collect();
        let problems = all.join("\n");
        if self.register.lock().is_news(key, source, &problems) {
            tracing::warn!(secret = %key, declaration = %source, %problems, "a declaration is not followed");
            let note = match problems.starts_with("Secret ") {
                true => problems,
                false => format!("Secret {}: {problems}", key.name),
            };
            self.event(key, declaration, Reason::DeclarationRefused, &note);
        }
    }

    /// A Secret that nothing declares any more stays, and is not renewed.
    async fn undeclare(&self, key: &SecretRef, look: Look, now: UnixTime) -> Result<(), Error> {
        let config = self.shared.config();
        let is_known = |secret: &ThinSecret| {
            let made = Made::read(key, &secret.head, || None, &config.class);
            made.is_some_and(|made| self.register.lock().is_known(&key.namespace, &made))
        };
        let Some(secret) = look.secret.filter(is_known) else {
            return Ok(());
        };
        let Decision::Change(changes) = decide::undeclare(now, key, &secret) else {
            return Ok(());
        };
        match patch(&self.shared.client, &secret, changes).await {
            Ok(_) => {}
            Err(Error::Conflict { .. } | Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        let SecretRef { namespace, name } = key;
        let declared = keys::DECLARED;
        let note = format!(
            "nothing declares the certificate any more: the Secret stays and is not renewed. To have it renewed without: \
             kubectl -n {namespace} annotate secret {name} {declared}-"
        );
        tracing::warn!(secret = %key, note, "not declared any more");
        let (events, uid) = (&self.shared.events, secret.head.uid());
        events.secret(key, uid, Reason::Undeclared, &note);
        Ok(())
    }

    fn event(&self, key: &SecretRef, declaration: &Declaration, reason: Reason, note: &str) {
        let on = version(key, declaration).reference();
        self.shared.events.on(on, reason, note);
    }

    fn state_of(&self, key: &SecretRef) -> Option<State> {
        let entry = self.shared.entry(key)?;
        Some(State::of(&entry, UnixTime::now()))
    }
}

fn version<'a>(key: &'a SecretRef, declaration: &'a Declaration) -> Version<'a> {
    Version {
        kind: declaration.source.kind,
        namespace: &key.namespace,
        name: &declaration.source.name,
        uid: &declaration.uid,
        resource_version: &declaration.resource_version,
    }
}

async fn patch(
    client: &kube::Client,
    secret: &ThinSecret,
    changes: Vec<(String, Option<String>)>,
) -> Result<ThinSecret, Error> {
    let annotations = changes
        .iter()
        .map(|(key, value)| (key.as_str(), value.clone()));
    let changes = Changes::of(annotations.collect::<Vec<_>>());
    secrets::patch(client, &secret.head, &changes).await
}
