//! The whole gateway in worlds of its own: real clients inside `tollgate run`, real servers outside.

#[cfg(test)]
mod common;

#[cfg(test)]
#[path = "gateway/client.rs"]
mod client;
#[cfg(test)]
#[path = "gateway/credentials.rs"]
mod credentials;
#[cfg(test)]
#[path = "gateway/decisions.rs"]
mod decisions;
#[cfg(test)]
#[path = "gateway/destinations.rs"]
mod destinations;
#[cfg(test)]
#[path = "gateway/upstreams.rs"]
mod upstreams;
