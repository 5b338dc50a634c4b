//! A captured connection, or one in a tunnel → its requests.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;

use super::exchange::{chain_text, record_malformed_head};
use super::forward::{Observed, answer};
use super::head_watch::{HeadWatch, IDLE_TIMEOUT, REQUEST_HEAD_TIMEOUT};
use super::refuse::Refusal;
use super::{Arrival, Body, Transport};
use crate::audit::{Kind, Open, Process, Reason};
use crate::gateway::Stages;
use crate::net::Host;
use crate::sniff::{Sniffed, sniff};
use crate::terminate::Alpn;

/// A connection that carries requests.
pub(crate) struct Connection {
    /// What requests need.
    pub(crate) stages: Arc<Stages>,
    /// How it was made.
    pub(crate) arrival: Arrival,
    /// Who made it.
    pub(crate) process: Process,
    /// Its record, should it end without a request.
    pub(crate) record: ConnectionRecord,
}

/// Where a connection was made to.
pub(crate) struct Target {
    /// The synthetic address's name, the address itself, or what CONNECT named.
    pub(crate) host: Host,
    /// The port.
    pub(crate) port: u16,
    /// Whether CONNECT named it.
    pub(crate) in_tunnel: bool,
}

/// The record of a connection; it is written when the connection ends without a request. Clones share it.
#[derive(Clone)]
pub(crate) struct ConnectionRecord(Arc<Mutex<Option<Open>>>);

/// Which HTTP the agent speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Serves whatever comes on `stream`, to the end.
pub(crate) async fn serve_stream<S>(
    stages: Arc<Stages>,
    target: Target,
    process: Process,
    record: ConnectionRecord,
    stream: S,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Target { host, port, in_tunnel } = target;
    let arrival = Arrival { host, port, in_tunnel, transport: Transport::Plain };
    let sniffed = match sniff(stream).await {
        Ok(sniffed) => sniffed,
        Err(error) => return record.end(error.reason(), &error),
    };
    let mut connection = Connection { stages, arrival, process, record };
    match sniffed {
        Sniffed::Http1(stream) => serve_http(Arc::new(connection), Version::Http1, stream).await,
        Sniffed::Http2(stream) => serve_http(Arc::new(connection), Version::Http2, stream).await,
        Sniffed::Tls(hello) => {
            let (stages, host) = (&connection.stages, &connection.arrival.host);
            let terminated = match stages.terminator.terminate(hello, host).await {
                Ok(terminated) => terminated,
                Err(error) => return connection.record.end(error.reason(), &error),
            };
            connection.arrival.transport = Transport::Tls { server_name: terminated.server_name };
            let version = match terminated.alpn {
                Alpn::Http1 => Version::Http1,
                Alpn::Http2 => Version::Http2,
            };
            serve_http(Arc::new(connection), version, terminated.stream).await;
        }
    }
}

/// Serves the requests on `stream`, to the end.
pub(crate) async fn serve_http<S>(connection: Arc<Connection>, version: Version, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match version {
        Version::Http1 => serve_http1(connection, stream).await,
        Version::Http2 => serve_http2(connection, stream).await,
    }
}

async fn serve_http1<S>(connection: Arc<Connection>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (stream, watch) = HeadWatch::wrap(stream);
    let service = requests(&connection, &watch);
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            // The watch times heads; hyper's own timer would also end idle connections.
            .header_read_timeout(None)
            // The watch holds the end of the agent's side back while its answer may still come.
            .half_close(false)
            .preserve_header_case(true)
            .max_buf_size(REQUEST_HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service_fn(service))
            .with_upgrades()
    );
    let draining = &connection.stages.lifecycle.draining;
    let serving = async {
        tokio::select! {
            ended = served.as_mut() => ended,
            () = draining.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        }
    };
    // The connection may linger for a while after a refusal; its record does not wait for that.
    let recording = async {
        record_malformed(&connection, watch.refusal().await);
        std::future::pending::<Infallible>().await
    };
    let ended = tokio::select! {
        ended = serving => ended,
        never = recording => match never {},
    };
    if let Some(status) = watch.take_refusal() {
        record_malformed(&connection, status);
    } else if let Err(error) = ended {
        connection.record.end(Reason::ClientClosed, &error);
    }
}

fn record_malformed(connection: &Connection, status: http::StatusCode) {
    connection.record.discard();
    let message = "the head of the request cannot be parsed";
    record_malformed_head(connection, &Refusal::BadRequest { status, message });
}

async fn serve_http2<S>(connection: Arc<Connection>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let quota = &connection.stages.quota;
    let _share = match quota.http2() {
        Ok(share) => share,
        Err(exhausted) => return connection.record.end(exhausted.reason(), &exhausted),
    };
    let watch = HeadWatch::new();
    let service = requests(&connection, &watch);
    let mut served = pin!(
        http2::Builder::new(quota.lane.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(STREAM_SEND_BYTES_MAX)
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service_fn(service))
    );
    let draining = &connection.stages.lifecycle.draining;
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = draining.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
        () = idle_for(&watch, IDLE_TIMEOUT) => {
            served.as_mut().graceful_shutdown();
            // A head that never ends would keep it open.
            tokio::select! {
                ended = served => ended,
                () = idle_for(&watch, IDLE_TIMEOUT + REQUEST_HEAD_TIMEOUT) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        connection.record.end(Reason::ClientClosed, &error);
    }
}

/// Ends when nothing has been in flight for `limit`.
async fn idle_for(watch: &HeadWatch, limit: Duration) {
    loop {
        match watch.idle().map(|idle| limit.saturating_sub(idle)) {
            Some(Duration::ZERO) => return,
            Some(left) => sleep(left).await,
            None => sleep(limit).await,
        }
    }
}

/// The service of one connection. It never fails: a refusal is an answer.
fn requests(
    connection: &Arc<Connection>,
    watch: &HeadWatch,
) -> impl Fn(Request<Incoming>) -> BoxFuture<'static, Result<Response<Body>, Infallible>> + use<> {
    let (connection, watch) = (Arc::clone(connection), watch.clone());
    move |request| {
        let (in_flight, sighting) = watch.begin(request.uri());
        let observed = Observed { watch: watch.clone(), in_flight, sighting };
        let connection = Arc::clone(&connection);
        Box::pin(async move { Ok(answer(connection, request, observed).await) })
    }
}

// === impl ConnectionRecord ===

impl ConnectionRecord {
    pub(crate) fn new(record: Open) -> Self {
        Self(Arc::new(Mutex::new(Some(record))))
    }

    /// A request came, which has a record of its own.
    pub(crate) fn discard(&self) {
        if let Some(record) = self.take() {
            record.discard();
        }
    }

    /// The connection ended; where it had a request, that one's record says so.
    pub(crate) fn end(&self, reason: Reason, error: &(dyn std::error::Error + 'static)) {
        if let Some(mut record) = self.take() {
            record.reason = reason;
            record.detail = Some(chain_text(error));
        }
    }

    /// The record of a tunnel in this connection: this one, which goes on there, or one of its own where the
    /// connection had a request before.
    pub(crate) fn of_tunnel(&self, stages: &Stages, process: &Process) -> Self {
        Self::new(self.take().unwrap_or_else(|| {
            let mut record =
                stages.audit.open(Kind::Connection, &stages.agent, Reason::ClientClosed);
            record.process = Some(process.clone());
            record
        }))
    }

    /// It was made to `target`.
    pub(crate) fn set_target(&self, target: &Target) {
        let mut record = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = record.as_mut() {
            record.host = Some(target.host.to_string());
            record.port = Some(target.port);
        }
    }

    fn take(&self) -> Option<Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A head with the longest target that hyper takes (64 KiB) and as many bytes of fields.
const REQUEST_HEAD_BYTES_MAX: usize = 128 * 1024;
const HEADER_LIST_BYTES_MAX: u32 = 128 * 1024;
/// Streams at once on one connection, as most servers offer.
const STREAMS_MAX: u32 = 250;
/// What an agent may send ahead of a slow upstream. It is fixed: a window that adapts is one that the agent can make
/// grow, and the way between them is the machine's own memory.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// What is held of an answer that the agent does not read.
const STREAM_SEND_BYTES_MAX: usize = 64 * 1024;
/// Finds agents that vanished while a stream was open.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
