//! The purposes of long-lived tasks: the label of their metrics.

/// The purpose of a long-lived task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Serves metrics, probes and the status page.
    MetricsServer,
    /// Answers the CA's HTTP-01 requests.
    ChallengeServer,
    /// Follows the order records, which hold the answers to the CA.
    OrderRecords,
    /// Follows the certificate of the metrics port.
    PortCertificate,
    /// Publishes Events.
    Events,
    /// Asks the CAs when to renew.
    RenewalInfo,
    /// Looks for changed pairs that the watch does not show.
    Pairs,
    /// Writes onto Secrets how they stand, where no other write does.
    Notes,
    /// Follows the objects that declare certificates.
    Declarations,
    /// Makes and keeps the Secrets of these.
    DeclaredSecrets,
    /// Looks for Secrets of a restored backup.
    Records,
    /// Reads what former leaders left, before anything is renewed.
    Takeover,
    /// Removes the routes of former orders.
    Sweep,
    /// Checks the operator's own rights at the start.
    Rights,
    /// Changes the log level, and reports how many lines were left out.
    Log,
    /// Sends traces.
    Traces,
    /// One renewal, or one rollout, which is tried again by itself.
    Secret,
}

impl Part {
    /// All parts.
    pub const ALL: [Self; 17] = [
        Self::MetricsServer,
        Self::ChallengeServer,
        Self::OrderRecords,
        Self::PortCertificate,
        Self::Events,
        Self::RenewalInfo,
        Self::Pairs,
        Self::Notes,
        Self::Declarations,
        Self::DeclaredSecrets,
        Self::Records,
        Self::Takeover,
        Self::Sweep,
        Self::Rights,
        Self::Log,
        Self::Traces,
        Self::Secret,
    ];

    /// Its value of the label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MetricsServer => "metrics_server",
            Self::ChallengeServer => "challenge_server",
            Self::OrderRecords => "order_records",
            Self::PortCertificate => "port_certificate",
            Self::Events => "events",
            Self::RenewalInfo => "renewal_info",
            Self::Pairs => "pairs",
            Self::Notes => "notes",
            Self::Declarations => "declarations",
            Self::DeclaredSecrets => "declared_secrets",
            Self::Records => "records",
            Self::Takeover => "takeover",
            Self::Sweep => "sweep",
            Self::Rights => "rights",
            Self::Log => "log",
            Self::Traces => "traces",
            Self::Secret => "secret",
        }
    }
}
