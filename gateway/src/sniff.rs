//! `Accepted` → [`Sniffed`]: which protocol the agent speaks; bounded, timed, inconclusive is refused.
//!
//! The parsers ([`first_bytes::classify`], [`client_hello::parse`]) are pure functions of bytes with three
//! outcomes; time and size limits live here. Nothing is guessed: what is still open when the time or the
//! bytes run out is an error, and every error is one [`Reason`].
//!
//! This module does not decide where a connection goes, and it forwards nothing.

use std::io;
use std::time::Duration;

use rustls::server::Accepted;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::StartHandshake;

use crate::audit::Reason;
use crate::net::{HostError, HostName};

pub mod client_hello;
pub mod first_bytes;
mod replay;

pub use replay::Replay;

use client_hello::{Alert, Invalid, Reader};
use first_bytes::Protocol;

/// What a parser knows about a prefix of the bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<T> {
    /// It is this; further bytes do not change it.
    Found(T),
    /// It is not this; further bytes do not change it.
    Not,
    /// More bytes are needed.
    Incomplete,
}

/// A connection whose protocol is known. Nothing has been sent to the agent yet.
#[derive(Debug)]
pub enum Sniffed<S> {
    /// TLS, with a complete ClientHello.
    Tls(TlsHello<S>),
    /// HTTP/1.x without TLS.
    Http1(Replay<S>),
    /// HTTP/2 without TLS, by prior knowledge.
    Http2(Replay<S>),
}

/// A connection that sent a complete and well-formed ClientHello.
#[derive(Debug)]
pub struct TlsHello<S> {
    /// The name in the server_name extension, canonical. A client that connects to an address sends none.
    pub server_name: Option<HostName>,
    /// The application protocols that the client offers, in its order. Empty where it has no such extension.
    pub alpn: Vec<Vec<u8>>,
    /// The handshake so far: it has swallowed the bytes in `raw` and goes on from there.
    accepted: Box<Accepted>,
    /// Every byte read from the stream.
    raw: Vec<u8>,
    /// The connection, positioned behind `raw`.
    stream: S,
}

/// Why a connection has no protocol.
#[derive(Debug, thiserror::Error)]
pub enum SniffError {
    /// The first bytes did not come in time, or a ClientHello was not complete in time.
    #[error("{received} bytes came in {SNIFF_TIMEOUT:?}, too few to tell the protocol")]
    Timeout {
        /// How many bytes did come.
        received: usize,
    },
    /// The first bytes are neither TLS nor HTTP. Their content is not kept: it may be a secret.
    #[error("the first {received} bytes are neither a TLS ClientHello nor HTTP")]
    UnknownProtocol {
        /// How many bytes were looked at.
        received: usize,
    },
    /// A TLS record that holds no well-formed ClientHello.
    #[error("the ClientHello is malformed")]
    ClientHello {
        /// What the TLS library says.
        #[source]
        source: rustls::Error,
    },
    /// The ClientHello goes on past the limit.
    #[error("the ClientHello is longer than {} bytes", client_hello::CLIENT_HELLO_MAX_BYTES)]
    ClientHelloTooLarge,
    /// The name in the server_name extension is no host name.
    #[error("the server name of the ClientHello is not a host name")]
    ServerName {
        /// What is wrong with it.
        #[source]
        source: HostError,
    },
    /// The agent closed its side before the protocol was clear.
    #[error("the connection was closed after {received} bytes")]
    Closed {
        /// How many bytes had come.
        received: usize,
    },
    /// Reading failed: the agent aborted.
    #[error("the connection broke after {received} bytes")]
    Broken {
        /// How many bytes had come.
        received: usize,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Reads from `stream` until the protocol is certain.
///
/// A malformed ClientHello is answered with a TLS alert before the error is returned; in every case of an error
/// the connection is closed.
///
/// # Errors
/// When the bytes are no protocol that the gateway speaks, or do not come in time.
pub async fn sniff<S>(mut stream: S) -> Result<Sniffed<S>, SniffError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut received = Received::default();
    let timed = timeout(SNIFF_TIMEOUT, received.read_until_known(&mut stream)).await;
    let Ok(outcome) = timed else {
        return Err(SniffError::Timeout { received: received.bytes.len() });
    };
    match outcome {
        Ok(Known::Http1) => Ok(Sniffed::Http1(Replay::new(received.bytes, stream))),
        Ok(Known::Http2) => Ok(Sniffed::Http2(Replay::new(received.bytes, stream))),
        Ok(Known::Tls(hello)) => Ok(Sniffed::Tls(TlsHello {
            server_name: hello.server_name,
            alpn: hello.alpn,
            accepted: hello.accepted,
            raw: received.bytes,
            stream,
        })),
        Err(Refused { error, alert }) => {
            if let Some(alert) = alert {
                send_alert(&mut stream, alert.as_bytes()).await;
            }
            Err(error)
        }
    }
}

/// First bytes and ClientHello together. A client that has connected has its first bytes ready.
pub const SNIFF_TIMEOUT: Duration = Duration::from_secs(10);

// === impl SniffError ===

impl SniffError {
    /// The one word for it in audit and metrics.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Timeout { .. } => Reason::FirstBytesTimeout,
            Self::UnknownProtocol { .. } => Reason::UnknownProtocol,
            Self::ClientHello { .. } | Self::ClientHelloTooLarge | Self::ServerName { .. } => {
                Reason::ClientHelloInvalid
            }
            Self::Closed { .. } | Self::Broken { .. } => Reason::ClientClosed,
        }
    }
}

// === impl TlsHello ===

impl<S> TlsHello<S> {
    /// Every byte that was read from the stream so far: what an upstream must see first where the connection is
    /// passed through untouched.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Tells the client that it gets no certificate, and closes.
    pub(crate) async fn refuse(mut self)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        send_alert(&mut self.stream, &ACCESS_DENIED).await;
    }

    /// The name, and the handshake that goes on from here. The raw bytes are let go: the connection is terminated.
    pub(crate) fn into_handshake(self) -> (Option<HostName>, StartHandshake<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        (self.server_name, StartHandshake::from_parts(*self.accepted, self.stream))
    }
}

// === the reading loop ===

/// The bytes read so far. It outlives the loop, so that a timeout can say how many there were.
#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
}

enum Known {
    Http1,
    Http2,
    Tls(client_hello::Hello),
}

struct Refused {
    error: SniffError,
    alert: Option<Alert>,
}

impl Received {
    async fn read_until_known<S>(&mut self, stream: &mut S) -> Result<Known, Refused>
    where
        S: AsyncRead + Unpin,
    {
        loop {
            self.read_more(stream).await?;
            match first_bytes::classify(&self.bytes) {
                Parsed::Incomplete => {}
                Parsed::Found(Protocol::Http1) => return Ok(Known::Http1),
                Parsed::Found(Protocol::Http2) => return Ok(Known::Http2),
                Parsed::Found(Protocol::Tls) => return self.read_client_hello(stream).await,
                Parsed::Not => {
                    return Err(SniffError::UnknownProtocol { received: self.bytes.len() }.into());
                }
            }
        }
    }

    async fn read_client_hello<S>(&mut self, stream: &mut S) -> Result<Known, Refused>
    where
        S: AsyncRead + Unpin,
    {
        let mut reader = Reader::default();
        let mut fed = 0;
        loop {
            let fresh = self.bytes.get(fed..).unwrap_or_default();
            if let Some(hello) = reader.feed(fresh)? {
                return Ok(Known::Tls(hello));
            }
            fed = self.bytes.len();
            self.read_more(stream).await?;
        }
    }

    async fn read_more<S>(&mut self, stream: &mut S) -> Result<(), Refused>
    where
        S: AsyncRead + Unpin,
    {
        self.bytes.reserve(READ_BYTES);
        let received = self.bytes.len();
        match stream.read_buf(&mut self.bytes).await {
            Ok(0) => Err(SniffError::Closed { received }.into()),
            Ok(_some) => Ok(()),
            Err(source) => Err(SniffError::Broken { received, source }.into()),
        }
    }
}

impl From<SniffError> for Refused {
    fn from(error: SniffError) -> Self {
        Self { error, alert: None }
    }
}

impl From<Invalid> for Refused {
    fn from(Invalid { error, alert }: Invalid) -> Self {
        Self { error, alert: Some(alert) }
    }
}

/// Room made for one read. A ClientHello has 300 to 2000 bytes.
const READ_BYTES: usize = 2048;

/// Best effort: the connection is refused either way, and a client that does not read must not hold it.
async fn send_alert<S: AsyncWrite + Unpin>(stream: &mut S, alert: &[u8]) {
    let sending = async {
        stream.write_all(alert).await?;
        stream.flush().await?;
        stream.shutdown().await
    };
    match timeout(ALERT_TIMEOUT, sending).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the TLS alert could not be sent"),
        Err(_elapsed) => tracing::debug!("the TLS alert was not taken in time"),
    }
}

/// A record with the fatal alert `access_denied` (RFC 8446 section 6.2).
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
/// Seven bytes into the empty send buffer of a fresh connection do not wait.
const ALERT_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
