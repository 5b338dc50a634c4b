//! `Terminated` → [`RequestHead`] + `Destination`, and every reply that the gateway itself writes.

mod ambiguity;
mod body;
mod budget;
mod destination;
mod exchange;
mod fields;
mod forward;
mod head_scan;
mod head_watch;
mod json_scan;
mod path;
mod refuse;
mod rehearsal;
mod serve;
mod tunnel;
mod upgrade;
mod usage;

pub use body::{AgentBodyError, Body, BodyError};
pub use path::{PathError, RequestPath};

pub(crate) use destination::{Arrival, Transport};
#[cfg(test)]
pub(crate) use destination::{Asked, examine};
pub(crate) use serve::{ConnectionRecord, Target, serve_stream};

use crate::net::Destination;

/// What policy decides about: one request, canonical.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// Case-sensitive method.
    pub method: String,
    /// Canonical destination.
    pub destination: Destination,
    /// Normalised path and its readings.
    pub path: RequestPath,
}

#[cfg(test)]
mod tests;
