//! The kernel programs on real sockets: what is redirected, hidden, refused, and what stays the workload's own.
//! Privileged.
//!
//! Each probe is a few lines of Python that run as the agent's command; where a probe proves a refusal, the same probe
//! without Tollgate shows what would have happened.

#[cfg(test)]
#[path = "redirect/dns.rs"]
mod dns;
#[cfg(test)]
#[path = "redirect/isolation.rs"]
mod isolation;
#[cfg(test)]
#[path = "redirect/load.rs"]
mod load;
#[cfg(test)]
#[path = "redirect/sockets.rs"]
mod sockets;
#[cfg(test)]
#[path = "redirect/tcp.rs"]
mod tcp;
#[cfg(test)]
#[path = "common/tollgate.rs"]
mod tollgate;
