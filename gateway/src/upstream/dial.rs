//! Destination → verified connection. The one place that opens sockets to the outside.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Dialect;
use super::address::is_refused_address;
use super::resolve::{ResolveError, Resolver};
use super::trust::Tls;
use crate::gateway::Exhausted;
use crate::net::{Destination, Host, Scheme, UpstreamAddr};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("the name cannot be resolved")]
    Unresolvable {
        #[source]
        source: ResolveError,
    },
    #[error("the name was not resolved in time")]
    ResolveTimeout,
    #[error("the name has no address")]
    NoAddress,
    #[error("all addresses of the host are refused without allow_private")]
    BlockedAddress,
    #[error("no address of the host accepts a connection")]
    Connect {
        #[source]
        source: io::Error,
    },
    #[error("the connection was not made in time")]
    ConnectTimeout,
    #[error("the certificate does not prove the host's name")]
    Untrusted {
        #[source]
        source: io::Error,
    },
    #[error("the TLS handshake failed")]
    Handshake {
        #[source]
        source: io::Error,
    },
    #[error("the TLS handshake was not done in time")]
    HandshakeTimeout,
    #[error("the request's URI names no destination")]
    Destination,
    #[error(transparent)]
    Exhausted(Exhausted),
}

/// An open connection.
pub(super) enum Dialled {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Opens connections; knows nothing of requests.
#[derive(Clone)]
pub(super) struct Dialer {
    resolver: Resolver,
    tls: Tls,
}

impl Dialer {
    pub(super) fn new(resolver: Resolver, tls: Tls) -> Self {
        Self { resolver, tls }
    }

    /// Connects to `destination`, over TLS where its scheme says so.
    pub(super) async fn dial(
        &self,
        destination: &Destination,
        allow_private: bool,
        dialect: Dialect,
    ) -> Result<(Dialled, UpstreamAddr), DialError> {
        let addresses = self.addresses(&destination.host, allow_private).await?;
        let candidates = addresses.into_iter().map(|ip| SocketAddr::new(ip, destination.port));
        let (stream, address) = timeout(CONNECT_TIMEOUT, connect_first(candidates.collect()))
            .await
            .map_err(|_elapsed| DialError::ConnectTimeout)?
            .map_err(|source| DialError::Connect { source })?;
        let dialled = match destination.scheme {
            Scheme::Http => Dialled::Plain(stream),
            Scheme::Https => {
                let handshake = self.handshake(stream, &destination.host, dialect);
                let stream = timeout(HANDSHAKE_TIMEOUT, handshake)
                    .await
                    .map_err(|_elapsed| DialError::HandshakeTimeout)??;
                Dialled::Tls(Box::new(stream))
            }
        };
        Ok((dialled, UpstreamAddr(address)))
    }

    /// The addresses that may be dialled. What is checked here is what is dialled: there is no second resolution.
    async fn addresses(&self, host: &Host, allow_private: bool) -> Result<Vec<IpAddr>, DialError> {
        let resolved = match host {
            Host::Ip(address) => vec![*address],
            Host::Name(name) => timeout(RESOLVE_TIMEOUT, self.resolver.lookup(name))
                .await
                .map_err(|_elapsed| DialError::ResolveTimeout)?
                .map_err(|source| DialError::Unresolvable { source })?,
        };
        if resolved.is_empty() {
            return Err(DialError::NoAddress);
        }
        let permitted: Vec<IpAddr> = resolved
            .into_iter()
            .filter(|address| allow_private || !is_refused_address(*address))
            .take(ADDRESSES_MAX)
            .collect();
        if permitted.is_empty() { Err(DialError::BlockedAddress) } else { Ok(permitted) }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        host: &Host,
        dialect: Dialect,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        let name = match host {
            Host::Ip(address) => ServerName::IpAddress((*address).into()),
            Host::Name(name) => ServerName::try_from(name.as_str().to_owned())
                .map_err(|_invalid| DialError::Destination)?,
        };
        let connector = TlsConnector::from(self.tls.config(dialect));
        connector.connect(name, stream).await.map_err(|source| {
            if is_about_the_certificate(&source) {
                DialError::Untrusted { source }
            } else {
                DialError::Handshake { source }
            }
        })
    }
}

fn is_about_the_certificate(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(
        tls,
        Some(
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::UnsupportedNameType
        )
    )
}

/// Connects to the first of `candidates` that answers; the next one starts when the former failed or was slow.
async fn connect_first(candidates: Vec<SocketAddr>) -> io::Result<(TcpStream, SocketAddr)> {
    let mut waiting = candidates.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match waiting.next() {
            Some(address) => attempts.push(connect(address)),
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
        let have_more = waiting.len() > 0;
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(connected) => return Ok(connected),
                Err(error) => failure = error,
            },
            () = sleep(ATTEMPT_STAGGER), if have_more => {}
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<(TcpStream, SocketAddr)> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    socket.set_keepalive(true)?;
    Ok((socket.connect(address).await?, address))
}

/// The resolver has its own limits; this one holds whatever they are.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// RFC 8305 section 5 recommends 250 ms between attempts.
const ATTEMPT_STAGGER: Duration = Duration::from_millis(250);
/// More addresses than this are not tried: ten seconds would not do for them.
const ADDRESSES_MAX: usize = 16;
