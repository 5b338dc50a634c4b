//! What a decision says, and the permit that it may hold.

use std::fmt;
use std::time::Duration;

use super::{CredentialName, RuleName};
use crate::agent::AgentName;
use crate::audit::Reason;
use crate::net::Destination;

/// What is decided about one request.
#[derive(Debug)]
pub enum Verdict {
    /// It may go on.
    Allow(Permit),
    /// It may go on if none of its limits is used up.
    Metered(Metered),
    /// A block rule matched.
    Block {
        /// The first such rule of the configuration.
        rule: RuleName,
    },
    /// No rule allows it, and the agent's default is deny.
    DefaultDeny,
    /// The policy does not know the agent. Callers treat it as [`Verdict::DefaultDeny`].
    UnknownAgent,
}

/// What is decided about a name, before there is a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameVerdict {
    /// Some request to that host could be permitted.
    Permitted,
    /// No request to that host can be permitted.
    Denied,
}

/// Leave for one request of one agent to one destination. Whoever sends anything asks for a `&Permit`.
///
/// It has no public constructor and cannot be cloned, so that each request needs its own decision.
#[derive(Debug)]
pub struct Permit {
    agent: AgentName,
    destination: Destination,
    rule: Option<RuleName>,
    allow_private: bool,
    credentials: Vec<CredentialName>,
}

/// A permit that is not given out before its limits have been charged.
#[derive(Debug)]
pub struct Metered {
    permit: Permit,
    limits: Vec<Limit>,
}

/// What one rule lets one agent have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limit {
    /// The rate-limit rule.
    pub rule: RuleName,
    /// How much of what.
    pub budget: Budget,
}

/// So much of something in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// How much, in units; at least 1.
    pub limit: u64,
    /// What is counted.
    pub unit: Unit,
    /// How long a window is.
    pub window: Window,
    /// How windows follow each other.
    pub algorithm: Algorithm,
}

/// A limit that is used up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExhaustedLimit {
    /// The limit.
    pub limit: Limit,
    /// When there will be something left; never zero.
    pub retry_after: Duration,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Requests, counted before they are forwarded.
    Requests,
    /// Bytes in both directions: request heads, and all bodies. Known as they flow.
    Bytes,
    /// Tokens of language models, as the answers report them. Known when they were used.
    Tokens,
}

/// How the windows of a limit follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// One after the other, beginning with the minutes, hours and days of UTC.
    Fixed,
    /// None: what was used comes back evenly, the whole limit in one window. This is the generic cell rate algorithm
    /// (ITU-T I.371, "virtual scheduling") with a burst of the whole limit.
    Sliding,
}

/// How long the window of a limit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window {
    /// 60 seconds.
    Minute,
    /// 60 minutes.
    Hour,
    /// 24 hours.
    Day,
}

// === impl Permit ===

impl Permit {
    /// Only `decide` calls this.
    pub(super) fn new(
        agent: AgentName,
        destination: Destination,
        rule: Option<RuleName>,
        allow_private: bool,
        credentials: Vec<CredentialName>,
    ) -> Self {
        Self { agent, destination, rule, allow_private, credentials }
    }

    /// Whose request it is.
    #[must_use]
    pub fn agent(&self) -> &AgentName {
        &self.agent
    }

    /// Where the request goes; nowhere else.
    #[must_use]
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// The first allow rule that matched; none where the agent's default allowed the request.
    #[must_use]
    pub fn rule(&self) -> Option<&RuleName> {
        self.rule.as_ref()
    }

    /// Why the request may go on.
    #[must_use]
    pub fn reason(&self) -> Reason {
        if self.rule.is_some() { Reason::AllowedByRule } else { Reason::AllowedByDefault }
    }

    /// Whether the upstream's address may be private.
    #[must_use]
    pub fn allow_private(&self) -> bool {
        self.allow_private
    }

    /// The credentials that go into exactly this request, at most one for each thing that is set.
    #[must_use]
    pub fn credentials(&self) -> &[CredentialName] {
        &self.credentials
    }
}

// === impl Metered ===

impl Metered {
    /// Only `decide` calls this.
    pub(super) fn new(permit: Permit, limits: Vec<Limit>) -> Self {
        Self { permit, limits }
    }

    /// The limits to charge, all or none. Never empty.
    #[must_use]
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// Whose request it is.
    #[must_use]
    pub fn agent(&self) -> &AgentName {
        &self.permit.agent
    }

    /// Gives out the permit if the limits could be charged.
    ///
    /// # Errors
    /// The limit that is used up, as it came in.
    pub fn settle(self, outcome: Result<(), ExhaustedLimit>) -> Result<Permit, ExhaustedLimit> {
        outcome.map(|()| self.permit)
    }
}

// === impl Unit, Algorithm, Window ===

impl Unit {
    /// The word that stands in the configuration and in replies.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Bytes => "bytes",
            Self::Tokens => "tokens",
        }
    }

    /// The largest limit: beyond it a limit is hardly meant as one.
    #[must_use]
    pub const fn limit_max(self) -> u64 {
        match self {
            Self::Requests => 1_000_000,
            Self::Bytes | Self::Tokens => 1_000_000_000_000,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Algorithm {
    /// The word that stands in the configuration and in replies.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Sliding => "sliding",
        }
    }
}

impl Window {
    /// The word that stands in the configuration and in replies.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// Its length.
    #[must_use]
    pub const fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::Minute => 60,
            Self::Hour => 60 * 60,
            Self::Day => 24 * 60 * 60,
        })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
