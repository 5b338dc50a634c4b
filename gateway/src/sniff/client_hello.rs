//! Bytes → a ClientHello, by the TLS library's own reader: what is decided here is what the handshake will read.
//!
//! [`parse`] is pure. `Reader` is the same thing fed piece by piece, so that a hello that comes byte by byte
//! costs no more than one that comes whole.

use rustls::server::{Accepted, AcceptedAlert, Acceptor};

use super::{Parsed, SniffError};
use crate::net::HostName;

/// What a ClientHello asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The name in the server_name extension, canonical.
    pub server_name: Option<HostName>,
    /// The application protocols that the client offers.
    pub alpn: Vec<Vec<u8>>,
}

/// Parses the beginning of a TLS connection. Bytes behind the ClientHello are left alone.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed<ClientHello> {
    match Reader::default().feed(bytes) {
        Ok(Some(Hello { server_name, alpn, .. })) => {
            Parsed::Found(ClientHello { server_name, alpn })
        }
        Ok(None) => Parsed::Incomplete,
        Err(_invalid) => Parsed::Not,
    }
}

/// Most bytes of a ClientHello, record headers included. The largest in the wild (post-quantum key shares and
/// pre-shared keys) have a few thousand.
pub const CLIENT_HELLO_MAX_BYTES: usize = 64 * 1024;

/// Reads a ClientHello incrementally.
#[derive(Default)]
pub(super) struct Reader {
    acceptor: Acceptor,
    /// How many bytes were fed.
    fed: usize,
}

/// A complete ClientHello and the handshake that goes on from it.
#[derive(Debug)]
pub(super) struct Hello {
    pub(super) server_name: Option<HostName>,
    pub(super) alpn: Vec<Vec<u8>>,
    pub(super) accepted: Box<Accepted>,
}

/// A ClientHello that is refused, and what the client is told.
#[derive(Debug)]
pub(super) struct Invalid {
    pub(super) error: SniffError,
    pub(super) alert: Alert,
}

/// The bytes of a fatal TLS alert.
#[derive(Debug)]
pub(super) struct Alert(Vec<u8>);

impl Reader {
    /// Takes the next bytes; `Some` when the hello is complete. Not to be called again after that or an error.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Option<Hello>, Invalid> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let before = rest.len();
            // The library's buffer is full, or takes nothing any more: the hello is too long for it as well.
            let taken = self.acceptor.read_tls(&mut rest).unwrap_or(0);
            self.fed = self.fed.saturating_add(before.saturating_sub(rest.len()));
            if taken == 0 || self.fed > CLIENT_HELLO_MAX_BYTES {
                return Err(Invalid::too_large());
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                // The handshake goes on from what the library holds; bytes that did not fit into it would be lost.
                Ok(Some(_accepted)) if !rest.is_empty() => return Err(Invalid::too_large()),
                Ok(Some(accepted)) => return Hello::new(accepted).map(Some),
                Err((source, alert)) => {
                    let error = SniffError::ClientHello { source };
                    return Err(Invalid { error, alert: Alert::of(alert) });
                }
            }
        }
        Ok(None)
    }
}

impl Hello {
    fn new(accepted: Accepted) -> Result<Self, Invalid> {
        let hello = accepted.client_hello();
        let server_name =
            hello.server_name().map(HostName::parse).transpose().map_err(|source| Invalid {
                error: SniffError::ServerName { source },
                alert: Alert::fatal(ALERT_UNRECOGNIZED_NAME),
            })?;
        let alpn =
            hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect()).unwrap_or_default();
        Ok(Self { server_name, alpn, accepted: Box::new(accepted) })
    }
}

impl Invalid {
    fn too_large() -> Self {
        Self { error: SniffError::ClientHelloTooLarge, alert: Alert::fatal(ALERT_DECODE_ERROR) }
    }
}

impl Alert {
    /// What the library wants to say. Of a broken record layer it says nothing; the client still hears why.
    fn of(mut alert: AcceptedAlert) -> Self {
        let mut bytes = Vec::new();
        match alert.write_all(&mut bytes) {
            Ok(()) if !bytes.is_empty() => Self(bytes),
            _nothing => Self::fatal(ALERT_DECODE_ERROR),
        }
    }

    /// A record of type alert (21), version 3.3, with a level and a description.
    fn fatal(description: u8) -> Self {
        Self(vec![21, 3, 3, 0, 2, ALERT_LEVEL_FATAL, description])
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

const ALERT_LEVEL_FATAL: u8 = 2;
const ALERT_DECODE_ERROR: u8 = 50;
const ALERT_UNRECOGNIZED_NAME: u8 = 112;
