//! WebSocket: an exchange that leaves HTTP and becomes bytes in both directions.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, Version};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf, copy_bidirectional};

use super::body::ByteCount;
use super::budget::ByteBudget;
use super::exchange::Exchange;
use super::{Body, fields};
use crate::gateway::Stages;

/// Whether the request asks for a WebSocket in the HTTP/1.1 way.
pub(super) fn asks_for_websocket(head: &Parts) -> bool {
    head.version == Version::HTTP_11
        && has_token(&head.headers, CONNECTION, "upgrade")
        && is_websocket(&head.headers)
}

/// Whether the Upgrade field names WebSocket and nothing else.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(UPGRADE).iter();
    let first = values.next().is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
    first && values.next().is_none()
}

fn has_token(headers: &HeaderMap, name: http::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Asks the next hop as the agent asked this one.
pub(super) fn set_request_fields(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Ends the connection of an upgrade that was not granted. hyper hands a connection over when its last request
/// could have been upgraded, whatever the answer was; it would be cut without TLS's farewell.
pub(super) fn decline(on_upgrade: Option<OnUpgrade>) {
    let Some(on_upgrade) = on_upgrade else { return };
    tokio::spawn(async move {
        if let Ok(upgraded) = on_upgrade.await
            && let Err(error) = TokioIo::new(upgraded).shutdown().await
        {
            tracing::debug!(%error, "a connection was cut");
        }
    });
}

/// Both ends of an upgrade that the upstream agreed to.
pub(super) struct Bridge {
    agent: OnUpgrade,
    response: Response<Body>,
}

impl Bridge {
    pub(super) fn new(agent: OnUpgrade, response: Response<Body>) -> Self {
        Self { agent, response }
    }

    /// Tells the agent and copies until both sides have ended. The record lives as long as the copying.
    pub(super) fn open(self, stages: &Arc<Stages>, mut exchange: Exchange) -> Response<Body> {
        let Self { agent, mut response } = self;
        exchange.set_opaque();
        let upstream = hyper::upgrade::on(&mut response);
        fields::scrub_response(response.headers_mut());
        set_request_fields(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        let killed = stages.lifecycle.killed.clone();
        stages.lifecycle.tasks.spawn(stages.quota.lane.run(async move {
            tokio::select! {
                () = killed.cancelled() => {}
                () = copy(agent, upstream, exchange) => {}
            }
        }));
        response.map(|_nothing| Body::empty())
    }
}

async fn copy(agent: OnUpgrade, upstream: OnUpgrade, exchange: Exchange) {
    let (agent, upstream) = match tokio::try_join!(agent, upstream) {
        Ok(ends) => ends,
        Err(error) => {
            tracing::debug!(%error, "an upgrade was given up");
            return;
        }
    };
    let mut agent = CountedIo {
        io: TokioIo::new(agent),
        up: exchange.up.clone(),
        down: exchange.down.clone(),
        budget: exchange.bytes.clone(),
    };
    let mut upstream = TokioIo::new(upstream);
    if let Err(error) = copy_bidirectional(&mut agent, &mut upstream).await {
        tracing::debug!(%error, "an upgraded connection was cut");
    }
}

/// The agent's end: what is read goes up, what is written goes down.
struct CountedIo {
    io: TokioIo<Upgraded>,
    up: ByteCount,
    down: ByteCount,
    budget: ByteBudget,
}

impl AsyncRead for CountedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        self.up.add(read);
        self.budget.spend(read).map_err(io::Error::other)?;
        polled
    }
}

impl AsyncWrite for CountedIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = &polled {
            self.down.add(*written);
            // What was written is written: this ends the connection one buffer too late.
            self.budget.spend(*written).map_err(io::Error::other)?;
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
