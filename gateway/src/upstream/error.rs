//! Why an upstream gave no response.

use std::error::Error;
use std::io;

use hyper_util::client::legacy;

use super::dial::DialError;
use crate::audit::Reason;
use crate::gateway::Exhausted;
use crate::http::AgentBodyError;
use crate::net::Host;

/// Why an upstream gave no response.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The name has no address.
    #[error("{host} has no address")]
    Unresolvable {
        /// The destination.
        host: Host,
        #[source]
        source: legacy::Error,
    },
    /// All addresses are of the kinds that need a rule with `allow_private`.
    #[error("{host} has only private, local or otherwise refused addresses")]
    BlockedAddress {
        /// The destination.
        host: Host,
        #[source]
        source: legacy::Error,
    },
    /// No connection.
    #[error("{host} cannot be reached")]
    Unreachable {
        /// The destination.
        host: Host,
        #[source]
        source: legacy::Error,
    },
    /// The certificate does not prove the name.
    #[error("the certificate of {host} does not prove its name")]
    Untrusted {
        /// The destination.
        host: Host,
        #[source]
        source: legacy::Error,
    },
    /// The response is malformed, or the connection ended without one.
    #[error("{host} sent no well-formed response")]
    Invalid {
        /// The destination.
        host: Host,
        #[source]
        source: legacy::Error,
    },
    /// It switched to a protocol that the request did not ask for.
    #[error("{host} switched protocols unasked")]
    UnaskedUpgrade {
        /// The destination.
        host: Host,
    },
    /// The connection does not say whom it was dialled to.
    #[error("the connection to {host} has no address")]
    Unattributed {
        /// The destination.
        host: Host,
    },
    /// The response's head did not come in time.
    #[error("{host} did not respond in time")]
    Timeout {
        /// The destination.
        host: Host,
    },
    /// The workload has no connection left for it.
    #[error("there is no room for a connection to {host}")]
    Exhausted {
        /// The destination.
        host: Host,
        /// Of what there is too little.
        #[source]
        exhausted: Exhausted,
    },
    /// The agent's own body is malformed.
    #[error("the body of the agent's request to {host} is malformed")]
    AgentMalformed {
        /// The destination.
        host: Host,
        #[source]
        source: legacy::Error,
    },
    /// The agent aborted its own request.
    #[error("the agent aborted its request to {host}")]
    AgentAborted {
        /// The destination.
        host: Host,
        #[source]
        source: legacy::Error,
    },
}

impl UpstreamError {
    pub(super) fn classify(host: Host, source: legacy::Error) -> Self {
        if let Some(body) = find::<AgentBodyError>(&source) {
            // hyper has no other word for a chunk that is none.
            let is_malformed = find::<io::Error>(body).is_some_and(|error| {
                matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
            });
            return if is_malformed {
                Self::AgentMalformed { host, source }
            } else {
                Self::AgentAborted { host, source }
            };
        }
        match find::<DialError>(&source) {
            Some(
                DialError::Unresolvable { .. } | DialError::ResolveTimeout | DialError::NoAddress,
            ) => Self::Unresolvable { host, source },
            Some(DialError::Exhausted(exhausted)) => {
                Self::Exhausted { host, exhausted: *exhausted }
            }
            Some(DialError::BlockedAddress) => Self::BlockedAddress { host, source },
            Some(DialError::Untrusted { .. }) => Self::Untrusted { host, source },
            Some(
                DialError::Connect { .. }
                | DialError::ConnectTimeout
                | DialError::Handshake { .. }
                | DialError::HandshakeTimeout
                | DialError::Destination,
            ) => Self::Unreachable { host, source },
            None if source.is_connect() => Self::Unreachable { host, source },
            None => Self::Invalid { host, source },
        }
    }

    /// The destination.
    #[must_use]
    pub fn host(&self) -> &Host {
        match self {
            Self::Unresolvable { host, .. }
            | Self::BlockedAddress { host, .. }
            | Self::Unreachable { host, .. }
            | Self::Untrusted { host, .. }
            | Self::Invalid { host, .. }
            | Self::UnaskedUpgrade { host }
            | Self::Unattributed { host }
            | Self::Timeout { host }
            | Self::Exhausted { host, .. }
            | Self::AgentMalformed { host, .. }
            | Self::AgentAborted { host, .. } => host,
        }
    }

    /// The word for it in audit and replies.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unresolvable { .. } => Reason::UpstreamUnresolvable,
            Self::BlockedAddress { .. } => Reason::BlockedAddress,
            Self::Unreachable { .. } => Reason::UpstreamUnreachable,
            Self::Untrusted { .. } => Reason::UpstreamUntrusted,
            Self::Invalid { .. } | Self::UnaskedUpgrade { .. } | Self::Unattributed { .. } => {
                Reason::UpstreamInvalid
            }
            Self::Timeout { .. } => Reason::UpstreamTimeout,
            Self::Exhausted { exhausted, .. } => exhausted.reason(),
            Self::AgentMalformed { .. } => Reason::BadRequest,
            Self::AgentAborted { .. } => Reason::ClientClosed,
        }
    }
}

/// The first error of type `T` in the chain of `error`.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    std::iter::successors(Some(error), |&error| error.source())
        .find_map(|error| error.downcast_ref())
}
