//! Where the verdicts of `status`, `describe` and `plan` come from: the operator, asked through the API server's proxy
//! to its metrics Service, so that nobody needs a right to read Secrets; or, without an operator or that right, the
//! Secrets themselves, judged by the same function. Standard error says which, and when nobody leads. An operator that
//! shows its page to viewers only is asked again with a token for it ([`crate::cli::verdicts::page_token`]).
//!
//! Private keys enter this process's memory only in the answer's buffer, and only when Secrets are read: they are
//! decoded by the thin type.

mod answer;
mod lists;
mod page_token;

use std::collections::BTreeSet;
use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use cert_renew_core::assess;
use cert_renew_core::config::Config;
use cert_renew_core::secret::data::data_keys::TLS_TYPE;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::settings::DEFAULT_CLASS;
use cert_renew_core::secret::stray::{self, Stray};
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::unmanaged::{NotManaged, Unmanaged};
use cert_renew_core::verdict::{self, Report, Verdict};
use clap::Args;
use kube::Client;
use zeroize::Zeroizing;

use super::Failure;
use super::output::plain;
use crate::cli::connection::api_error::{is_forbidden, is_not_found, is_unavailable};
use crate::cli::connection::cluster_config;
use crate::cli::connection::kube_flags::{Clients, OperatorNamespace, Scope};
use crate::cli::connection::operator::Leader;
use crate::cli::verdicts::answer::Answer;
pub(super) use crate::cli::verdicts::lists::selections;
use crate::cli::verdicts::lists::{labelled, list};
use crate::cli::verdicts::page_token::PageToken;
use crate::cluster::access::viewers::SERVICE;
use crate::net::metrics_port::access::{CLOSED, HEADER};

/// Longest wait for the operator's answer: the API server gives up on a dead pod later.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most Secrets that are asked for one by one.
const FEW: usize = 8;
/// Most Secrets that are not managed and told of before a list.
const TOLD: usize = 10;

/// Most answers that are asked for until one is of the replica that leads, which alone knows all about one Secret: each may
/// come from any replica.
const TRIES: usize = 6;

/// The scheme of a Service's proxy, which is HTTP without it.
const HTTPS: &str = "https:";

/// Which operator is asked.
#[derive(Clone, Debug, Args)]
pub(super) struct Operator {
    #[command(flatten)]
    pub(super) of: OperatorNamespace,
    /// The Service of its status page, with the port's name
    #[arg(
        long,
        value_name = "NAME:PORT",
        default_value = SERVICE
    )]
    metrics_service: String,
    #[arg(skip)]
    token: PageToken,
}

/// The Secrets that are meant.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// The namespace; None for all.
    pub(super) namespace: Option<String>,
    /// Namespace and name of each; None for all in the namespace.
    pub(super) places: Option<BTreeSet<(String, String)>>,
    /// How they are shown, as far as the operator should know.
    pub(super) shown: Shown,
}

/// What of the certificates is shown: where there are too many, the operator leaves out the last ones of the order.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shown {
    /// The order of the answer, in the words of the page's `sort`; by name where there is none.
    pub(super) sort: Option<&'static str>,
    /// Those that end within this time only; the order is by their end then.
    pub(super) within: Option<Duration>,
    /// Whether a line for each is enough, with the beginning of what is wrong.
    pub(super) briefly: bool,
}

impl Wanted {
    /// Those that were named on the command line and that a selector takes, within the scope.
    ///
    /// # Errors
    /// When a name has another form; when the Secrets with these labels cannot be listed.
    pub(super) async fn of(
        client: &Client,
        scope: &Scope,
        names: &[String],
        selector: Option<&str>,
    ) -> Result<Self, Failure> {
        scope.takes_names(names)?;
        let namespace = scope.namespace(client).map(ToOwned::to_owned);
        let named = names.iter().map(|name| scope.of(client, name));
        let named: BTreeSet<_> = named.collect::<Result<_, _>>()?;
        let named = (!names.is_empty()).then_some(named);
        let places = match (selector, named) {
            (None, named) => named,
            (Some(selector), named) => {
                let mut labelled = labelled(&scope.api(client), selector).await?;
                labelled.retain(|place| named.as_ref().is_none_or(|it| it.contains(place)));
                Some(labelled)
            }
        };
        // One list is enough where all are in one namespace, whatever the context's is.
        let spaces = places.iter().flatten().map(|(namespace, _)| namespace);
        let spaces: BTreeSet<&String> = spaces.collect();
        let namespace = match (spaces.len(), spaces.first()) {
            (0, _) => namespace,
            (1, Some(one)) => Some((*one).clone()),
            _ => None,
        };
        Ok(Self {
            namespace,
            places,
            shown: Shown::default(),
        })
    }

    /// One Secret.
    pub(super) fn one(place: (String, String)) -> Self {
        Self {
            namespace: Some(place.0.clone()),
            places: Some(BTreeSet::from([place])),
            shown: Shown::default(),
        }
    }

    /// Whether the report has all certificates that are meant: what is left out ends later than what is there.
    fn is_complete(&self, report: &Report) -> bool {
        let last = report.certificates.last().and_then(|it| it.not_after);
        let until = self.shown.within.map(|within| report.as_of + within);
        let beyond = until.zip(last).is_some_and(|(until, last)| last > until);
        report.left_out == 0 || beyond
    }

    /// The questions that the operator is asked: each a namespace and a name, if any. Names in several namespaces are
    /// asked for one by one, or in each of their namespaces, as an answer holds a bounded number of certificates.
    fn questions(&self) -> Vec<(Option<&str>, Option<&str>)> {
        match &self.places {
            Some(places) if (1..=FEW).contains(&places.len()) => {
                let each = places.iter();
                each.map(|(namespace, name)| (Some(&**namespace), Some(&**name)))
                    .collect()
            }
            Some(places) if self.namespace.is_none() && !places.is_empty() => {
                let spaces: BTreeSet<&str> = places.iter().map(|(it, _)| &**it).collect();
                spaces.into_iter().map(|it| (Some(it), None)).collect()
            }
            _ => vec![(self.namespace.as_deref(), None)],
        }
    }

    /// Whether a Secret is one of them.
    pub(super) fn takes(&self, namespace: &str, name: &str) -> bool {
        let place = || (namespace.to_owned(), name.to_owned());
        { self.namespace.as_deref() }.is_none_or(|it| it == namespace) && { self.places.as_ref() }
            .is_none_or(|it| it.contains(&place()))
    }

    /// Names what was asked for and is not there; the exit code.
    pub(super) fn tell_missing(&self, report: &Report) -> ExitCode {
        let mut code = ExitCode::SUCCESS;
        for (namespace, name) in self.missing(&report.certificates) {
            let why = why_missing(report, namespace, name);
            say(&format!("{namespace}/{name}: {why}"));
            code = ExitCode::FAILURE;
        }
        code
    }

    /// Those that were named and are not among the certificates.
    fn missing<'a>(
        &'a self,
        certificates: &'a [Verdict],
    ) -> impl Iterator<Item = &'a (String, String)> {
        let found = |(namespace, name): &&(String, String)| {
            let is = |it: &Verdict| *it.namespace == **namespace && *it.name == **name;
            !certificates.iter().any(is)
        };
        self.places.iter().flatten().filter(found)
    }
}

/// Why a Secret that was named is not among the certificates of a report.
pub(super) fn why_missing(report: &Report, namespace: &str, name: &str) -> String {
    match report.unmanaged.text_of(namespace, name) {
        Some(text) => plain(text).into_owned(),
        None if report.left_out > 0 => {
            "it is not among the certificates that fit into an answer; ask for it alone".into()
        }
        None => not_there(report.class.as_deref().unwrap_or(DEFAULT_CLASS)),
    }
}

/// Why a Secret that was named is not among those that an operator of this class manages: one of several reasons.
pub(super) fn not_there(class: &str) -> String {
    format!(
        "there is no such Secret, or it is not annotated with {}, or names another class than {}, or lacks the label {}, which \
         one of another type than {TLS_TYPE} needs, and each where the config has watch.select: label, or is in a namespace \
         that is not watched",
        keys::ISSUER,
        plain(class),
        keys::MANAGED_LABEL
    )
}

/// Who gave the verdicts.
pub(super) enum Source {
    /// The operator.
    Operator,
    /// The Secrets, judged with this config, if it is known.
    Secrets(Option<Box<Config>>),
}

/// The verdicts, and who gave them.
pub(super) struct Found {
    pub(super) report: Report,
    pub(super) source: Source,
}

impl Found {
    /// Asks the operator, or else reads the Secrets; says on standard error what the reader should know of that.
    ///
    /// # Errors
    /// When neither can be read.
    pub(super) async fn of(
        clients: &Clients,
        operator: &Operator,
        wanted: &Wanted,
    ) -> Result<Self, Failure> {
        let Clients { api: client, once } = clients;
        let why = match operator.report(once, wanted).await {
            Ok(report) => {
                let found = Self {
                    report,
                    source: Source::Operator,
                };
                found.tell(&leader_of(&found.report), None, operator);
                return Ok(found);
            }
            Err(why) => why,
        };
        let namespace = operator.namespace();
        let (config, leader) = tokio::join!(operator.config(once), Leader::look(once, namespace));
        let (config, of_config) = match config {
            Ok(config) => (
                Some(Box::new(config)),
                "with the config of its ConfigMap".to_owned(),
            ),
            Err(Failure(error)) => (None, format!("without its config ({error})")),
        };
        let leader = leader.unwrap_or(Leader::Unknown);
        let report = Report {
            version: None,
            class: config.as_ref().map(|config| config.class.as_str().into()),
            operator_namespace: Some(namespace.into()),
            replica: None,
            leader: leader.reported(),
            as_of: UnixTime::now(),
            notices: Vec::new(),
            unmanaged: Unmanaged::default(),
            matching: 0,
            left_out: 0,
            certificates: Vec::new(),
        };
        let mut found = Self {
            report,
            source: Source::Secrets(config),
        };
        let note = format!(
            "this is what the Secrets say, {of_config}: the operator could not be asked, {why}"
        );
        let takes = |namespace: &str, name: &str| wanted.takes(namespace, name);
        let secrets = match list(client, wanted.namespace.as_deref(), takes).await {
            // The API server is not there, which is said once.
            Err(failure) if note.contains(&failure.0) => return Err(failure),
            secrets => secrets,
        };
        found.tell(&leader, Some(note), operator);
        let secrets = secrets?;
        found.report.as_of = UnixTime::now();
        let judged: Vec<Verdict> = secrets.iter().filter_map(|it| found.judge(it)).collect();
        found.report.certificates = judged;
        let strays: Vec<_> = secrets.iter().filter_map(|it| found.stray(it)).collect();
        found.report.unmanaged = Unmanaged::of(strays.iter().map(|(key, stray)| (key, stray)));
        if wanted.places.as_ref().is_none_or(|it| it.len() != 1) {
            for verdict in &mut found.report.certificates {
                verdict.detail = None;
            }
        }
        found.report.matching = found.report.certificates.len();
        Ok(found)
    }

    /// The verdict on a Secret that was read here; none where it is not managed.
    pub(super) fn judge(&self, secret: &ThinSecret) -> Option<Verdict> {
        let Source::Secrets(config) = &self.source else {
            return None;
        };
        if self.stray(secret).is_some() {
            return None;
        }
        let mut verdict = verdict::of_secret(UnixTime::now(), secret, config.as_deref())?;
        if let Some(namespace) = &self.report.operator_namespace {
            verdict.name_operator(namespace);
        }
        Some(verdict)
    }

    /// A Secret that was read here and seems to be meant, and is not managed.
    fn stray(&self, secret: &ThinSecret) -> Option<(SecretRef, Stray)> {
        let Source::Secrets(config) = &self.source else {
            return None;
        };
        let head = &secret.head;
        let key = SecretRef::new(head.namespace(), head.name());
        // One that has opted in is no stray, also where the issuer is its namespace's default.
        let of_config = |config| assess::of_thin(UnixTime::now(), &key, secret, config);
        if config.as_deref().and_then(of_config).is_some() {
            return None;
        }
        // Without its config the class of the operator is not known: no Secret is of another one then.
        let own = { head.annotations() }.and_then(|it| it.get(keys::CLASS));
        let own = own.map_or(DEFAULT_CLASS, |it| it.trim());
        let class = self.report.class.as_deref().unwrap_or(own);
        let stray = stray::of(&key, head, class)?;
        Some((key, stray))
    }

    /// Tells of the Secrets that seem to be meant and are not managed, as far as they are asked for.
    pub(super) fn tell_unmanaged(&self, wanted: &Wanted) {
        let Unmanaged { count, named } = &self.report.unmanaged;
        if *count == 0 || wanted.places.is_some() {
            return;
        }
        let (s, verb) = if *count == 1 { ("", "s") } else { ("s", "") };
        say(&format!(
            "{count} Secret{s} seem{verb} to be meant for cert-renew:"
        ));
        for NotManaged {
            namespace,
            name,
            text,
            ..
        } in named.iter().take(TOLD)
        {
            say(&format!("{namespace}/{name}: {}", plain(text)));
        }
        let more = count.saturating_sub(named.len().min(TOLD));
        if more > 0 {
            say(&format!("and {more} more: -o json names them"));
        }
    }

    /// What the reader should know before the answer, as the first line of standard error.
    fn tell(&self, leader: &Leader, note: Option<String>, operator: &Operator) {
        let nobody = leader.nobody(self.report.as_of, operator.namespace());
        let parts = [nobody, note, left_out(&self.report)];
        let all: Vec<String> = parts.into_iter().flatten().collect();
        if !all.is_empty() {
            say(&all.join("; "));
        }
        for notice in &self.report.notices {
            say(&plain(notice));
        }
    }
}

/// Who leads, by the operator's word.
fn leader_of(report: &Report) -> Leader {
    match &report.leader {
        verdict::Leader {
            name: Some(name), ..
        } => Leader::Leads(name.to_string()),
        verdict::Leader { silent_since, .. } => Leader::Nobody(*silent_since),
    }
}

/// That nobody leads, by the operator's word, if so.
pub(super) fn nobody_leads(report: &Report, operator: &Operator) -> Option<String> {
    leader_of(report).nobody(report.as_of, operator.namespace())
}

/// That the operator's answer had no room for some certificates, if so.
pub(super) fn left_out(report: &Report) -> Option<String> {
    let count = report.left_out;
    (count > 0).then(|| {
        format!(
            "{count} certificates are left out, as there are too many: name a namespace or a Secret"
        )
    })
}

/// Whether the replica that leads has answered, or none leads.
fn is_of_the_leader(report: &Report) -> bool {
    { report.leader.name.as_ref() }.is_none_or(|leader| report.replica.as_ref() == Some(leader))
}

/// A line on standard error.
pub(super) fn say(text: &str) {
    // There is no other output if standard error is closed.
    let _ = writeln!(std::io::stderr(), "cert-renew: {text}");
}

impl Operator {
    /// Its namespace.
    pub(super) fn namespace(&self) -> &str {
        &self.of.operator_namespace
    }

    /// The operator's report.
    ///
    /// # Errors
    /// Why it could not be asked, as a part of a sentence.
    pub(super) async fn report(&self, client: &Client, wanted: &Wanted) -> Result<Report, String> {
        let mut all: Option<Report> = None;
        let alone = { wanted.places.as_ref() }.is_some_and(|places| places.len() == 1);
        for (namespace, name) in wanted.questions() {
            let mut report = self.answer(client, namespace, name, wanted.shown).await?;
            for _ in 1..TRIES {
                if !alone || is_of_the_leader(&report) {
                    break;
                }
                report = self.answer(client, namespace, name, wanted.shown).await?;
            }
            let Some(all) = &mut all else {
                all = Some(report);
                continue;
            };
            all.certificates.extend(report.certificates);
            all.matching += report.matching;
            all.left_out += report.left_out;
            all.unmanaged.count += report.unmanaged.count;
            all.unmanaged.named.extend(report.unmanaged.named);
        }
        let mut report = all.ok_or("as nothing is asked for")?;
        if wanted.is_complete(&report) {
            report.left_out = 0;
        }
        for verdict in report.certificates.iter_mut().filter(|_| !alone) {
            verdict.detail = None;
        }
        let takes = |it: &Verdict| wanted.takes(&it.namespace, &it.name);
        report.certificates.retain(takes);
        Ok(report)
    }

    /// The answer to one question.
    async fn answer(
        &self,
        client: &Client,
        of_namespace: Option<&str>,
        of_name: Option<&str>,
        shown: Shown,
    ) -> Result<Report, String> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let sort = shown.within.map(|_| "ends").or(shown.sort);
        query.append_pair("sort", sort.unwrap_or("secret"));
        if shown.briefly {
            query.append_pair("texts", "short");
        }
        for (key, value) in [("namespace", of_namespace), ("name", of_name)] {
            if let Some(value) = value {
                query.append_pair(key, value);
            }
        }
        let answer = in_time(self.ask(client, &query.finish())).await;
        let Answer(report) = answer.map_err(|_| {
            let seconds = PATIENCE.as_secs();
            format!("as it did not answer within {seconds} s")
        })??;
        Ok(report)
    }

    /// Asks it, with a token where it wants one.
    async fn ask(&self, client: &Client, query: &str) -> Result<Answer, String> {
        let known = self.token.known().await;
        let first = self.get(client, query, known.as_ref()).await?;
        let answer = match first {
            Err(kube::Error::Api(status)) if status.message.starts_with(CLOSED) => {
                let token = self.token.ask(client, self.namespace()).await?;
                self.get(client, query, Some(&token)).await?
            }
            answer => answer,
        };
        answer.map_err(|error| self.why_not(&error))
    }

    /// One request through the API server's proxy; a token goes over TLS only.
    async fn get(
        &self,
        client: &Client,
        query: &str,
        token: Option<&Zeroizing<String>>,
    ) -> Result<kube::Result<Answer>, String> {
        let (namespace, service) = (self.namespace(), &self.metrics_service);
        let service = match token {
            Some(_) => format!("{HTTPS}{}", service.trim_start_matches(HTTPS)),
            None => service.clone(),
        };
        let path = format!(
            "/api/v1/namespaces/{namespace}/services/{service}/proxy/api/certificates?{query}"
        );
        let mut request = http::Request::get(path);
        if let Some(token) = token {
            request = request.header(HEADER, token.as_str());
        }
        let request = request.body(Vec::new());
        let request = request.map_err(|error| error.to_string())?;
        Ok(client.request::<Answer>(request).await)
    }

    /// Why it could not be asked.
    fn why_not(&self, error: &kube::Error) -> String {
        let (namespace, service) = (self.namespace(), &self.metrics_service);
        match error {
            kube::Error::Api(status) if status.message.starts_with(CLOSED) => {
                format!("as it answered: {}", plain(status.message.trim()))
            }
            error if is_forbidden(error) => format!(
                "as you may not get services/proxy {service} in {namespace} (rbac/addons/viewer.yaml has the role)"
            ),
            error if is_not_found(error) => {
                format!("as there is no Service {service} in {namespace} (--operator-namespace)")
            }
            kube::Error::Api(status) if is_unavailable(error) => format!(
                "as no replica of it answers in namespace {namespace} ({}; --operator-namespace names another)",
                plain(status.message.trim())
            ),
            kube::Error::Api(status) => {
                let message = status.message.trim();
                format!("as it answered {}: {}", status.code, plain(message))
            }
            kube::Error::SerdeError(_) => "as its answer is one of another version".to_owned(),
            other => format!("({})", plain(&Failure::new("asking it", other).0)),
        }
    }

    /// The config in the cluster.
    ///
    /// # Errors
    /// When it cannot be read, or has a fault.
    pub(super) async fn config(&self, client: &Client) -> Result<Config, Failure> {
        let read = cluster_config::read(client, self.namespace());
        let none = |_| Failure("reading the config: no answer in time".into());
        in_time(read).await.map_err(none)?
    }
}

async fn in_time<T>(request: impl Future<Output = T>) -> Result<T, tokio::time::error::Elapsed> {
    tokio::time::timeout(PATIENCE, request).await
}

#[cfg(test)]
mod tests;
