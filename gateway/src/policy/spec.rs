//! What the configuration says about agents, credentials and rules, checked but not yet compiled.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Budget, HostPattern, PathPattern, Schedule};
use crate::agent::AgentName;
use crate::net::{Openings, Scheme};

/// The name of a rule, unique in a policy. It stands in replies and audit lines.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleName(Arc<str>);

/// The name of a credential, unique in a policy. Never the credential itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CredentialName(Arc<str>);

/// Text that is no name of a rule or a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a name has 1 to 100 characters, none of them a control character, and no blank at either end"
)]
pub struct NameError(());

/// `[[agent]]`: a kind of workload and what it may do where no rule says otherwise.
#[derive(Debug, Clone)]
pub struct AgentSpec {
    /// Unique in a policy.
    pub name: AgentName,
    /// What happens to a request that no rule allows or blocks.
    pub default: DefaultAction,
    /// The agent whose grants and rules this one has too. Its default is not inherited.
    pub parent: Option<AgentName>,
    /// Which workloads are this agent.
    pub workloads: WorkloadMatch,
    /// What of their wires is open. Not inherited.
    pub openings: Openings,
}

/// What happens to a request that no rule allows or blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultAction {
    /// It goes on, without leave to reach private addresses.
    Allow,
    /// It is refused.
    Deny,
}

/// Which workloads an agent is. All given conditions must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadMatch {
    /// Container labels and their values.
    pub labels: Vec<(String, String)>,
    /// Glob over the container's name.
    pub container: Option<String>,
    /// Glob over the cgroup's path.
    pub cgroup: Option<String>,
}

/// `[[credential]]`: where a secret comes from, where it goes, and who may use it. Holds no secret.
#[derive(Debug, Clone)]
pub struct CredentialSpec {
    /// Unique in a policy.
    pub name: CredentialName,
    /// Where the secret is read.
    pub source: SourceSpec,
    /// What the secret does to a request.
    pub inject: Injection,
    /// The variable that holds the placeholder in the workload.
    pub env: Option<String>,
    /// Hosts that may see the secret; never empty.
    pub hosts: Vec<HostPattern>,
    /// Paths that may see the secret; never empty ([`PathPattern::everything`] where the configuration has none).
    pub paths: Vec<PathPattern>,
    /// Ports that may see the secret; never empty.
    pub ports: Vec<u16>,
    /// Whether the secret may travel over plain HTTP.
    pub allow_plaintext: bool,
    /// The agents that may use it. Empty: none.
    pub agents: Vec<AgentName>,
}

/// Where a secret is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSpec {
    /// The content of a file.
    File(PathBuf),
    /// A variable of the gateway's own environment.
    Env(String),
}

/// What a secret does to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injection {
    /// It overwrites a header field.
    Header {
        /// The field's name.
        name: http::HeaderName,
        /// The field's value, with `{value}` where the secret goes.
        format: String,
    },
}

/// `[[rule]]`. An absent condition (`None`) holds for everything; a present one is never empty.
#[derive(Debug, Clone)]
pub struct RuleSpec {
    /// Unique in a policy.
    pub name: RuleName,
    /// The agents that it governs, with those that descend from them.
    pub agents: Option<Vec<AgentName>>,
    /// Destination hosts.
    pub hosts: Option<Vec<HostPattern>>,
    /// How requests travel.
    pub protocol: Option<Scheme>,
    /// Destination ports.
    pub ports: Option<Vec<u16>>,
    /// Methods, in the spelling that is sent.
    pub methods: Option<Vec<String>>,
    /// Paths.
    pub paths: Option<Vec<PathPattern>>,
    /// What it does.
    pub action: Action,
    /// Whether it does anything at all.
    pub enabled: bool,
    /// Whether it decides, or is only watched.
    pub mode: Mode,
    /// When it is in force.
    pub schedule: Option<Schedule>,
}

/// Whether a rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It does.
    Enforce,
    /// It changes nothing: what it would have changed is recorded.
    Shadow,
}

/// What a rule does to the requests that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Lets them go on.
    Allow {
        /// Whether the upstream's address may be private.
        allow_private: bool,
    },
    /// Refuses them.
    Block,
    /// Counts them, or what they move, and refuses what is too much. Allows nothing by itself.
    RateLimit(Budget),
}

// === impl RuleName, CredentialName ===

impl RuleName {
    /// Checks `name`.
    ///
    /// # Errors
    /// When it is empty, too long, or not legible in one line.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        legible(name).map(Self)
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl CredentialName {
    /// Checks `name`.
    ///
    /// # Errors
    /// When it is empty, too long, or not legible in one line.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        legible(name).map(Self)
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn legible(name: &str) -> Result<Arc<str>, NameError> {
    let fits = (1..=NAME_MAX_CHARS).contains(&name.chars().count());
    if fits && name.trim() == name && !name.chars().any(char::is_control) {
        Ok(Arc::from(name))
    } else {
        Err(NameError(()))
    }
}

/// Longest name of a rule or credential: it stands in every reply and audit line about it.
const NAME_MAX_CHARS: usize = 100;

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for CredentialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CredentialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl WorkloadMatch ===

impl WorkloadMatch {
    /// What an agent without `match` is known by: the label `tollgate.agent` with its name.
    #[must_use]
    pub fn by_label(agent: &AgentName) -> Self {
        Self {
            labels: vec![(AGENT_LABEL.to_owned(), agent.as_str().to_owned())],
            container: None,
            cgroup: None,
        }
    }

    /// Whether it asks for what only an engine can tell of a workload: labels, or a container's name.
    #[must_use]
    pub fn asks_an_engine(&self) -> bool {
        !self.labels.is_empty() || self.container.is_some()
    }
}

/// The container label that names an agent.
pub const AGENT_LABEL: &str = "tollgate.agent";
