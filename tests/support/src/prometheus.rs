//! A real Prometheus that scrapes operators of the bench every second.
//!
//! `prometheus` must be in PATH; `tests/tools.sh promtool` gets Debian's package, which contains both.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::process::Process;
use crate::{Bench, ports};

/// Longest start: it takes a second, and more on a machine that also compiles.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// A running Prometheus; ended when dropped.
pub struct Prometheus {
    process: Arc<Process>,
    url: String,
    http: reqwest::Client,
}

impl Prometheus {
    /// Starts one that scrapes `targets` and evaluates the rule file's `rules`, both every second.
    ///
    /// # Errors
    /// When it is not in PATH, refuses the rules, or does not become ready.
    pub async fn start(
        bench: &Bench,
        name: &str,
        targets: &[SocketAddr],
        rules: &str,
    ) -> Result<Self> {
        let directory = bench.directory().join(name);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("rules.yaml"), rules)?;
        let targets: Vec<String> = targets.iter().map(|it| format!("\"{it}\"")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [rules.yaml]\nscrape_configs:\n  - job_name: cert-renew\n    honor_labels: true\n    \
             static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        let file = directory.join("prometheus.yaml");
        std::fs::write(&file, config)?;
        let address = ports::free()?;
        let process = Process::spawn(bench.group(), name, command(&file, &directory, address))?;
        let prometheus = Self {
            process,
            url: format!("http://{address}"),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(10))
                .build()?,
        };
        let url = format!("{}/-/ready", prometheus.url);
        let probe = async || {
            let answer = prometheus.http.get(&url).send().await?;
            Ok(answer.error_for_status().map(drop)?)
        };
        prometheus.process.ready(READY_DEADLINE, probe).await?;
        Ok(prometheus)
    }

    /// The series that an expression returns now, with their labels.
    ///
    /// # Errors
    /// When it does not answer, or cannot evaluate the expression.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        self.ask("query", &[("query", expression)]).await
    }

    /// The series that an expression returns over the last `seconds`, with a step of one second.
    ///
    /// # Errors
    /// As [`Prometheus::query`].
    pub async fn query_range(&self, expression: &str, seconds: i64) -> Result<Vec<Value>> {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let (start, end) = ((now - seconds).to_string(), now.to_string());
        let parameters = [
            ("query", expression),
            ("start", &start),
            ("end", &end),
            ("step", "1"),
        ];
        self.ask("query_range", &parameters).await
    }

    async fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> Result<Vec<Value>> {
        let mut url = reqwest::Url::parse(&format!("{}/api/v1/{what}", self.url))?;
        url.query_pairs_mut().extend_pairs(parameters);
        let text = self.http.get(url).send().await?.text().await?;
        let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        ensure!(
            answer["status"] == "success",
            "{}: {answer}",
            parameters[0].1
        );
        let result = answer["data"]["result"].as_array();
        Ok(result.cloned().unwrap_or_default())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.process.kill();
    }
}

fn command(config: &Path, directory: &Path, address: SocketAddr) -> Command {
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            directory.join("data").display()
        ))
        .arg(format!("--web.listen-address={address}"))
        .arg("--log.level=warn");
    command
}
