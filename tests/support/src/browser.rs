//! A real Chromium, controlled by its DevTools protocol over a pipe: no port, no driver.
//!
//! `chromium` must be in PATH; `tests/tools.sh chromium` gets Debian's.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

/// Longest wait for an answer. A page of ten thousand rows loads in a second; a busy machine may take twenty.
const DEADLINE: Duration = Duration::from_secs(60);
/// Chromium expects the pipe as file descriptors 3 and 4; both are passed as standard input and output.
const SCRIPT: &str = "exec \"$0\" \"$@\" 3<&0 4>&1 1>&2";

/// One browser with one tab; ended when dropped.
pub struct Browser {
    child: Child,
    requests: ChildStdin,
    messages: Receiver<Value>,
    profile: PathBuf,
    session: String,
    last: u64,
    /// Complaints of the page: exceptions and violations of its policy.
    complaints: Vec<String>,
    /// Bytes on the wire since the tab was opened, including headers.
    received: f64,
}

impl Browser {
    /// Starts a browser that keeps its profile in `directory`.
    ///
    /// # Errors
    /// When there is none in PATH or it does not answer.
    pub fn start(directory: &Path) -> Result<Self> {
        let profile = directory.join(format!("chromium-{}", std::process::id()));
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT, "chromium"])
            .args([
                "--headless",
                "--remote-debugging-pipe",
                // Tests may run as root in a container, where its sandbox cannot be built; it visits only loopback.
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--no-proxy-server",
                "--disable-background-networking",
                "--hide-scrollbars",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting sh")?;
        let requests = child.stdin.take().context("no standard input")?;
        let answers = child.stdout.take().context("no standard output")?;
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(answers).split(0) {
                let parsed = message.ok().and_then(|it| serde_json::from_slice(&it).ok());
                let Some(parsed) = parsed else { return };
                if sender.send(parsed).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            child,
            requests,
            messages,
            profile,
            session: String::new(),
            last: 0,
            complaints: Vec::new(),
            received: 0.0,
        };
        let tab = browser
            .ask("Target.createTarget", json!({"url": "about:blank"}))
            .context("is chromium in PATH? tests/tools.sh chromium gets it")?;
        let attached = browser.ask(
            "Target.attachToTarget",
            json!({"targetId": tab["targetId"], "flatten": true}),
        )?;
        browser.session = attached["sessionId"]
            .as_str()
            .context("no session")?
            .to_owned();
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            browser.ask(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Calls a method of the DevTools protocol and returns its result.
    ///
    /// # Errors
    /// When the browser refuses or does not answer.
    pub fn ask(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.last += 1;
        let mut request = json!({"id": self.last, "method": method, "params": parameters});
        if !self.session.is_empty() {
            request["sessionId"] = self.session.as_str().into();
        }
        self.requests.write_all(request.to_string().as_bytes())?;
        self.requests.write_all(&[0])?;
        let id = self.last;
        let answer = self.receive(method, |message| message["id"] == id)?;
        ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        Ok(answer["result"].clone())
    }

    /// Opens a page and waits until it has loaded.
    ///
    /// # Errors
    /// When it does not load.
    pub fn open(&mut self, url: &str) -> Result<()> {
        self.received = 0.0;
        let answer = self.ask("Page.navigate", json!({"url": url}))?;
        ensure!(answer["errorText"].is_null(), "{url}: {answer}");
        self.loaded()
    }

    /// Waits until a page that is being opened has loaded.
    ///
    /// # Errors
    /// When it does not load.
    pub fn loaded(&mut self) -> Result<()> {
        self.receive("loading", |message| {
            message["method"] == "Page.loadEventFired"
        })
        .map(drop)
    }

    /// The value of an expression in the page.
    ///
    /// # Errors
    /// When it throws.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.ask("Runtime.evaluate", asked)?;
        ensure!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {}",
            answer["exceptionDetails"]
        );
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression in the page is true.
    ///
    /// # Errors
    /// When it does not become true.
    pub fn until(&mut self, expression: &str) -> Result<()> {
        let started = Instant::now();
        while self.evaluate(expression)? != true {
            ensure!(started.elapsed() < DEADLINE, "never true: {expression}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Makes it behave as a browser that prefers `dark` or `light`.
    ///
    /// # Errors
    /// When it refuses.
    pub fn prefer(&mut self, scheme: &str) -> Result<()> {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.ask("Emulation.setEmulatedMedia", json!({"features": features}))
            .map(drop)
    }

    /// Gives the window this size, in pixels.
    ///
    /// # Errors
    /// When it refuses.
    pub fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.ask("Emulation.setDeviceMetricsOverride", size)?;
        Ok(())
    }

    /// Writes a picture of a window of this size, as PNG.
    ///
    /// # Errors
    /// When it refuses, or the file cannot be written.
    pub fn picture(&mut self, file: &Path, width: u32, height: u32) -> Result<()> {
        self.resize(width, height)?;
        let picture = self.ask("Page.captureScreenshot", json!({"format": "png"}))?;
        let bytes = picture["data"].as_str().context("no picture")?;
        std::fs::write(file, BASE64_STANDARD.decode(bytes)?)
            .with_context(|| format!("writing {}", file.display()))
    }

    /// The complaints of the page until now.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Bytes on the wire since [`Browser::open`], compressed where they were sent compressed.
    #[must_use]
    pub fn received(&self) -> f64 {
        self.received
    }

    fn receive(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let started = Instant::now();
        loop {
            let left = DEADLINE.saturating_sub(started.elapsed());
            let message = self.messages.recv_timeout(left);
            let message = message.map_err(|_| anyhow!("chromium: no answer to {what}"))?;
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => {
                    self.complaints.push(message["params"].to_string());
                }
                Some("Log.entryAdded") if message["params"]["entry"]["level"] == "error" => {
                    self.complaints
                        .push(message["params"]["entry"]["text"].to_string());
                }
                Some("Network.loadingFinished") => {
                    let length = &message["params"]["encodedDataLength"];
                    self.received += length.as_f64().unwrap_or_default();
                }
                _ => {}
            }
            if wanted(&message) {
                return Ok(message);
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Both fail only when it has ended already; the rest of the profile is removed with the bench's directory.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
