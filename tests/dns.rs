//! Names for the agent: what a workload under `tollgate run` gets for its queries, and what its internet hears of them.

#[cfg(test)]
mod common;

#[cfg(test)]
#[path = "dns/addresses.rs"]
mod addresses;
#[cfg(test)]
#[path = "dns/answers.rs"]
mod answers;
#[cfg(test)]
#[path = "dns/lab.rs"]
mod lab;
#[cfg(test)]
#[path = "dns/leaks.rs"]
mod leaks;
#[cfg(test)]
#[path = "dns/limits.rs"]
mod limits;
#[cfg(test)]
#[path = "dns/malformed.rs"]
mod malformed;
#[cfg(test)]
#[path = "dns/resolvers.rs"]
mod resolvers;
#[cfg(test)]
#[path = "dns/search.rs"]
mod search;
#[cfg(test)]
#[path = "dns/zone.rs"]
mod zone;
