//! Connections that are kept open, apart for everything that may not share one.
//!
//! Each workload has a pool of its own. Its connections have a share of the workload's quota, idle ones too; when
//! little is left, idle ones are closed before any request is refused.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::Dialect;
use super::dial::{DialError, Dialer, Dialled};
use crate::agent::AgentName;
use crate::gateway::Exhausted;
use crate::gateway::quota::{Quota, Share};
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
    quota: Arc<Quota>,
    clients: Clients,
}

/// A handful: one per agent, dialect and kind of addresses. Forgetting one closes its idle connections as soon as no
/// request of it waits for its response; those in use go on to the end of their requests.
type Clients = Mutex<HashMap<Trust, Client<Connector, Body>>>;

/// Makes the connections of one [`Trust`].
#[derive(Clone)]
pub(super) struct Connector {
    dialer: Dialer,
    allow_private: bool,
    dialect: Dialect,
    quota: Arc<Quota>,
}

/// A connection in the pool.
pub(super) struct Pooled {
    stream: Stream,
    /// Of the workload's quota, until the connection is closed.
    share: Share,
    address: UpstreamAddr,
    is_http2: bool,
}

enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

// === impl Pool ===

impl Pool {
    pub(super) fn new(dialer: Dialer, quota: Arc<Quota>) -> Self {
        Self { dialer, quota, clients: Clients::default() }
    }

    #[cfg(test)]
    pub(super) fn quota(&self) -> &Quota {
        &self.quota
    }

    pub(super) fn client(&self, trust: &Trust) -> Client<Connector, Body> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if self.quota.upstream_is_scarce() {
            clients.clear();
        }
        if let Some(client) = clients.get(trust) {
            return client.clone();
        }
        let client = self.new_client(trust);
        clients.insert(trust.clone(), client.clone());
        client
    }

    fn new_client(&self, trust: &Trust) -> Client<Connector, Body> {
        Client::builder(self.quota.lane.clone())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .http1_max_buf_size(RESPONSE_HEAD_BYTES_MAX)
            .http1_preserve_header_case(true)
            .http2_max_header_list_size(RESPONSE_HEADER_LIST_BYTES_MAX)
            // Fixed: one that adapts is one that an agent which does not read can make grow.
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_max_send_buf_size(STREAM_SEND_BYTES_MAX)
            .http2_keep_alive_interval(HTTP2_PING_INTERVAL)
            .http2_keep_alive_timeout(HTTP2_PING_TIMEOUT)
            .http2_only(trust.dialect == Dialect::Http2)
            .build(Connector {
                dialer: self.dialer.clone(),
                allow_private: trust.allow_private,
                dialect: trust.dialect,
                quota: Arc::clone(&self.quota),
            })
    }
}

const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
const IDLE_PER_HOST_MAX: usize = 32;
const RESPONSE_HEAD_BYTES_MAX: usize = 256 * 1024;
const RESPONSE_HEADER_LIST_BYTES_MAX: u32 = 256 * 1024;
/// What an upstream may send ahead of an agent that is slow to read: 20 MB a second over 50 ms.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 2048 * 1024;
/// What is held of a request's body that the upstream does not take.
const STREAM_SEND_BYTES_MAX: usize = 64 * 1024;
/// How long a request waits for the end of another connection where none is left.
const SHARE_TIMEOUT: Duration = Duration::from_secs(1);
const SHARE_CHECK_INTERVAL: Duration = Duration::from_millis(20);
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
        let this = self.clone();
        Box::pin(async move {
            let destination = destination_of(&uri).ok_or(DialError::Destination)?;
            let share = this.share(Quota::upstream).await.map_err(DialError::Exhausted)?;
            let (dialled, address) =
                this.dialer.dial(&destination, this.allow_private, this.dialect).await?;
            let mut pooled = Pooled::new(dialled, address, share);
            if pooled.is_http2 || this.dialect == Dialect::Http2 {
                let more = this.share(Quota::upstream_http2).await;
                pooled.share.join(more.map_err(DialError::Exhausted)?);
            }
            Ok(pooled)
        })
    }
}

impl Connector {
    /// A share of the quota; where none is left, idle connections are just being closed, and others may end.
    async fn share(
        &self,
        take: fn(&Quota) -> Result<Share, Exhausted>,
    ) -> Result<Share, Exhausted> {
        let deadline = Instant::now() + SHARE_TIMEOUT;
        loop {
            match take(&self.quota) {
                Err(_exhausted) if Instant::now() < deadline => {}
                outcome => return outcome,
            }
            sleep(SHARE_CHECK_INTERVAL).await;
        }
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
    fn new(dialled: Dialled, address: UpstreamAddr, share: Share) -> Self {
        match dialled {
            Dialled::Plain(stream) => Self {
                stream: Stream::Plain(TokioIo::new(stream)),
                address,
                is_http2: false,
                share,
            },
            Dialled::Tls(stream) => {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                Self {
                    stream: Stream::Tls(Box::new(TokioIo::new(*stream))),
                    address,
                    is_http2,
                    share,
                }
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
