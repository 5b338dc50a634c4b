//! `Terminated` → [`RequestHead`] + `Destination`, and every reply that the gateway itself writes.
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

/// A request path, normalised once: what is matched is what is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPath {
    /// The normalised path that is sent on.
    pub sent: String,
    /// The query as it came, byte for byte, without `?`.
    pub query: Option<String>,
    /// Every way in which an upstream may read the path; `sent` is the first.
    pub readings: Vec<String>,
}

/// A target that is malformed or ambiguous.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stub")]
pub struct PathError {}
impl RequestPath {
    /// Normalises an origin-form target (`/a/b?c`).
    pub fn parse(_target: &str) -> Result<Self, PathError> { unimplemented!() }
}
