//! (policy, agent, request head) → [`Verdict`]: who may ask for what, and with which credentials.
//!
//! The strictest matching rule wins, whatever the order: block, then rate limit, then allow, then the agent's
//! default. Where upstreams may read one path in different ways, every reading counts: block and rate-limit rules
//! apply when *any* reading matches, allow rules and credentials only when *all* of them do.
//!
//! Invariants: nothing here does I/O, reads a clock or is async; only [`decide`] makes a [`Permit`] (directly, or
//! through [`Metered::settle`]), and a permit holds for exactly one request.
#![warn(clippy::wildcard_enum_match_arm)]

mod compile;
mod decide;
mod host_pattern;
mod path_pattern;
mod spec;
mod verdict;

pub use compile::Policy;
pub(crate) use decide::rivalry;
pub use decide::{decide, decide_name};
pub use host_pattern::{HostPattern, HostPatternError};
pub use path_pattern::{PathPattern, PathPatternError};
pub use spec::{
    AGENT_LABEL, Action, AgentSpec, CredentialName, CredentialSpec, DefaultAction, Injection,
    NameError, RuleName, RuleSpec, SourceSpec, WorkloadMatch,
};
pub use verdict::{
    Algorithm, Budget, ExhaustedLimit, Limit, Metered, NameVerdict, Permit, Unit, Verdict, Window,
};

#[cfg(test)]
mod tests;
