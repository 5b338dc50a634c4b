//! `Sniffed::Tls` → [`Terminated`]: the gateway's own certificate authority and the handshake with the agent.
//!
//! A certificate is made only for a canonical [`Host`]: the name in the ClientHello, or where there is none, the
//! host that the connection was made to. Configurations are cached per host and made once, however many
//! connections want one at the same time.
//!
//! This module does not decide whether the host may be reached; the refusal of a denied host travels over the
//! connection that is established here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::audit::Reason;
use crate::net::{Host, HostName};
use crate::sniff::TlsHello;

mod authority;
mod files;
mod key;
mod leaf;
mod rotation;

pub use authority::{Authority, AuthorityError};
pub use files::FileError;
pub use key::KeyError;
pub use leaf::MintError;
pub use rotation::{Described, describe, rotate, trusted_pem};

use leaf::Leaves;

/// A connection whose TLS the gateway has terminated.
#[derive(Debug)]
pub struct Terminated<S> {
    /// The plain text.
    pub stream: TlsStream<S>,
    /// The name in the ClientHello; none where the client connected to an address.
    pub server_name: Option<HostName>,
    /// The application protocol that both sides agreed on.
    pub alpn: Alpn,
}

/// An application protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// `http/1.1`, and what a client without the extension speaks.
    Http1,
    /// `h2`.
    Http2,
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum TerminateError {
    /// The client refused the certificate.
    #[error(
        "the client does not trust the CA (TLS alert {alert:?}): it uses a trust store of its own, or pins certificates"
    )]
    Distrusted {
        /// The alert that it sent.
        alert: AlertDescription,
    },
    /// The handshake was not finished in time.
    #[error("the TLS handshake was not finished in {HANDSHAKE_TIMEOUT:?}")]
    Timeout,
    /// The client closed in the middle of the handshake.
    #[error(
        "the client closed during the TLS handshake; some clients do that when they do not trust the CA"
    )]
    Closed,
    /// The handshake failed otherwise.
    #[error("the TLS handshake failed")]
    Handshake {
        /// What the TLS library or the system says.
        #[source]
        source: io::Error,
    },
    /// No certificate could be made for the host.
    #[error("no certificate for {host} could be made")]
    Mint {
        /// The host.
        host: Host,
        /// Why.
        #[source]
        source: Arc<MintError>,
    },
}

/// Finishes the handshakes of one workload. The request path holds this, and not the [`Authority`]: it can present
/// certificates for hosts, and neither read the CA's key nor sign anything else.
#[derive(Debug)]
pub struct Terminator {
    leaves: Leaves,
}

/// For the whole handshake after the ClientHello.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

// === impl Terminator ===

impl Terminator {
    /// A terminator that presents certificates of `authority`, whichever that is when a handshake begins.
    #[must_use]
    pub fn new(authority: Arc<ArcSwap<Authority>>) -> Self {
        Self { leaves: Leaves::new(authority) }
    }

    /// Finishes the handshake. `fallback` is the host that the connection was made to, for a client that names none.
    ///
    /// # Errors
    /// When no certificate can be made, or the client does not finish the handshake.
    pub async fn terminate<S>(
        &self,
        hello: TlsHello<S>,
        fallback: &Host,
    ) -> Result<Terminated<S>, TerminateError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = hello.server_name.as_ref();
        let host = name.map_or_else(|| fallback.clone(), |name| Host::Name(name.clone()));
        let config = match self.leaves.server_config(&host) {
            Ok(config) => config,
            Err(source) => {
                hello.refuse().await;
                return Err(TerminateError::Mint { host, source });
            }
        };
        let (server_name, handshake) = hello.into_handshake();
        let stream = match timeout(HANDSHAKE_TIMEOUT, handshake.into_stream(config)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(TerminateError::from_handshake(source)),
            Err(_elapsed) => return Err(TerminateError::Timeout),
        };
        let alpn = match stream.get_ref().1.alpn_protocol() {
            Some(ALPN_HTTP2) => Alpn::Http2,
            _http1_or_none => Alpn::Http1,
        };
        Ok(Terminated { stream, server_name, alpn })
    }
}

/// As it stands in the ALPN extension (RFC 9113 section 3.1).
const ALPN_HTTP2: &[u8] = b"h2";
/// As it stands in the ALPN extension (RFC 7301 section 6).
const ALPN_HTTP1: &[u8] = b"http/1.1";
/// What clients offer that are told to speak HTTP/1.0 (curl does); without it their handshake would fail.
const ALPN_HTTP1_0: &[u8] = b"http/1.0";

// === impl TerminateError ===

impl TerminateError {
    /// The one word for it in audit and metrics; the text of the error is the detail.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Mint { source, .. } if matches!(**source, MintError::TooMany(_)) => {
                Reason::QuotaExceeded
            }
            Self::Distrusted { .. }
            | Self::Timeout
            | Self::Closed
            | Self::Handshake { .. }
            | Self::Mint { .. } => Reason::ClientHandshakeFailed,
        }
    }

    fn from_handshake(source: io::Error) -> Self {
        if let Some(rustls::Error::AlertReceived(alert)) = tls_error(&source)
            && DISTRUST_ALERTS.contains(alert)
        {
            return Self::Distrusted { alert: *alert };
        }
        match source.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _other => Self::Handshake { source },
        }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What clients send about a certificate whose issuer they do not know: OpenSSL and rustls the first, Go and
/// NSS the second, Java the third.
const DISTRUST_ALERTS: [AlertDescription; 3] = [
    AlertDescription::UnknownCA,
    AlertDescription::BadCertificate,
    AlertDescription::CertificateUnknown,
];

#[cfg(test)]
mod tests;
