//! The whole gateway in worlds of its own: real clients inside `tollgate run`, real servers outside.

#[cfg(test)]
mod common;

#[cfg(test)]
#[path = "gateway/audit.rs"]
mod audit;
#[cfg(test)]
#[path = "gateway/bypass.rs"]
mod bypass;
#[cfg(test)]
#[path = "gateway/client.rs"]
mod client;
#[cfg(test)]
#[path = "gateway/clients.rs"]
mod clients;
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
#[path = "gateway/hostile.rs"]
mod hostile;
#[cfg(test)]
#[path = "gateway/limits.rs"]
mod limits;
#[cfg(test)]
#[path = "gateway/streaming.rs"]
mod streaming;
#[cfg(test)]
#[path = "gateway/upstreams.rs"]
mod upstreams;
