//! Every refusal of the kernel programs reaches the audit: what was tried, by whom, and how often. Privileged, but for
//! the reading of a log.
//!
//! Each attempt runs as an agent's command; the same attempt without Tollgate shows that it would have gone out.

#[cfg(test)]
#[path = "security_events/classes.rs"]
mod classes;
#[cfg(test)]
#[path = "security_events/flood.rs"]
mod flood;
#[cfg(test)]
#[path = "security_events/logs.rs"]
mod logs;
#[cfg(test)]
#[path = "security_events/probe.rs"]
mod probe;
#[cfg(test)]
#[path = "common/tollgate.rs"]
mod tollgate;
#[cfg(test)]
#[path = "security_events/wire.rs"]
mod wire;
