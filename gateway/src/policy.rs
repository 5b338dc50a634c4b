//! (policy, agent, request head) → [`Verdict`]: who may ask for what, and with which credentials.
//!
//! The strictest matching rule wins, whatever the order: block, then rate limit, then allow, then the agent's
//! default. Where upstreams may read one path in different ways, every reading counts: block and rate-limit rules
//! apply when *any* reading matches, allow rules and credentials only when *all* of them do.
//!
//! A rule in shadow decides nothing: [`decide`] does not look at it, [`rehearse`] tells what it would have changed.
//!
//! Invariants: nothing here does I/O, reads a clock or is async; only [`decide`] makes a [`Permit`] (directly, or
//! through [`Metered::settle`]), and a permit holds for exactly one request.
#![warn(clippy::wildcard_enum_match_arm)]

mod compile;
mod decide;
mod grant;
mod host_pattern;
mod index;
mod path_pattern;
mod rehearse;
mod rule;
mod schedule;
mod sieve;
mod spec;
mod verdict;

pub use compile::Policy;
pub use decide::{decide, decide_name};
pub(crate) use grant::rivalry;
pub use host_pattern::{HostPattern, HostPatternError};
pub use path_pattern::{PathPattern, PathPatternError};
pub use rehearse::{WouldHave, dormant, rehearse};
pub use schedule::{Days, DaysError, Hours, HoursError, Schedule, Standing, Weekly};
pub(crate) use schedule::{time_zone, time_zone_names};
pub use spec::{
    AGENT_LABEL, Action, AgentSpec, CredentialName, CredentialSpec, DefaultAction, Injection, Mode,
    NameError, RuleName, RuleSpec, SourceSpec, WorkloadMatch,
};
pub use verdict::{
    Algorithm, Budget, ExhaustedLimit, Limit, Metered, NameVerdict, Permit, Unit, Verdict, Window,
};

#[cfg(test)]
mod tests;
