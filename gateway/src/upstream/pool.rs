//! Connections that are kept open, apart for everything that may not share one.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::Dialect;
use super::dial::{DialError, Dialer, Dialled};
use crate::agent::AgentName;
use crate::http::Body;
use crate::net::{Destination, Host, Scheme, UpstreamAddr};

/// What two requests must have in common to share a connection (besides the destination): a connection that
/// one agent opened, or that a rule with `allow_private` opened, is no other agent's and no other rule's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Trust {
    pub(super) agent: AgentName,
    pub(super) allow_private: bool,
    pub(super) dialect: Dialect,
}

pub(super) struct Pool {
    dialer: Dialer,
    clients: moka::sync::Cache<Trust, Client<Connector, Body>>,
}

/// Makes the connections of one [`Trust`].
#[derive(Clone)]
pub(super) struct Connector {
    dialer: Dialer,
    allow_private: bool,
    dialect: Dialect,
}

/// A connection in the pool.
pub(super) struct Pooled {
    stream: Stream,
    address: UpstreamAddr,
    is_http2: bool,
}

enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

// === impl Pool ===

impl Pool {
    pub(super) fn new(dialer: Dialer) -> Self {
        Self { dialer, clients: moka::sync::Cache::new(CLIENTS_MAX) }
    }

    pub(super) fn client(&self, trust: &Trust) -> Client<Connector, Body> {
        self.clients.get_with_by_ref(trust, || {
            Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
                .http1_max_buf_size(RESPONSE_HEAD_BYTES_MAX)
                .http1_preserve_header_case(true)
                .http2_max_header_list_size(RESPONSE_HEADER_LIST_BYTES_MAX)
                .http2_adaptive_window(true)
                .http2_keep_alive_interval(HTTP2_PING_INTERVAL)
                .http2_keep_alive_timeout(HTTP2_PING_TIMEOUT)
                .http2_only(trust.dialect == Dialect::Http2)
                .build(Connector {
                    dialer: self.dialer.clone(),
                    allow_private: trust.allow_private,
                    dialect: trust.dialect,
                })
        })
    }
}

/// Clients (not connections) that are kept: three per agent at most, for far more agents than a host has.
const CLIENTS_MAX: u64 = 1024;
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
const IDLE_PER_HOST_MAX: usize = 32;
const RESPONSE_HEAD_BYTES_MAX: usize = 256 * 1024;
const RESPONSE_HEADER_LIST_BYTES_MAX: u32 = 256 * 1024;
/// Finds a connection that died silently while requests wait on it.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);

// === impl Connector ===

impl Service<Uri> for Connector {
    type Response = Pooled;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Pooled, DialError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { dialer, allow_private, dialect } = self.clone();
        Box::pin(async move {
            let destination = destination_of(&uri).ok_or(DialError::Destination)?;
            let (dialled, address) = dialer.dial(&destination, allow_private, dialect).await?;
            Ok(Pooled::new(dialled, address))
        })
    }
}

fn destination_of(uri: &Uri) -> Option<Destination> {
    let scheme = match uri.scheme_str()? {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    let host = Host::parse(uri.host()?).ok()?;
    Some(Destination {
        scheme,
        host,
        port: uri.port_u16().unwrap_or_else(|| scheme.default_port()),
    })
}

// === impl Pooled ===

impl Pooled {
    fn new(dialled: Dialled, address: UpstreamAddr) -> Self {
        match dialled {
            Dialled::Plain(stream) => {
                Self { stream: Stream::Plain(TokioIo::new(stream)), address, is_http2: false }
            }
            Dialled::Tls(stream) => {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                Self { stream: Stream::Tls(Box::new(TokioIo::new(*stream))), address, is_http2 }
            }
        }
    }
}

impl Connection for Pooled {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(self.address);
        if self.is_http2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Pooled {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Stream::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl Write for Pooled {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Stream::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(io) => Pin::new(io).poll_flush(cx),
            Stream::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Stream::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(io) => io.is_write_vectored(),
            Stream::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Stream::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }
}
