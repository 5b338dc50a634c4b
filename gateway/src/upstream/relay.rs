//! One request and the wait for the head of its response.
//!
//! Only the upstream is timed: while the agent is slow to send its body, no time runs.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper_util::client::legacy::Client;
use tokio::time::{Instant, sleep_until};

use super::UpstreamError;
use super::pool::Connector;
use crate::http::{AgentBodyError, Body};
use crate::net::{Host, UpstreamAddr};

pub(super) async fn relay(
    client: &Client<Connector, Body>,
    host: &Host,
    request: Request<Body>,
) -> Result<(Response<Body>, UpstreamAddr), UpstreamError> {
    let progress = Progress::new();
    let request = request.map(|inner| Body::new(Watched { inner, progress: progress.clone() }));
    let response = tokio::select! {
        response = client.request(request) => response,
        () = progress.stalled() => return Err(UpstreamError::Timeout { host: host.clone() }),
    };
    let mut response = response.map_err(|source| UpstreamError::classify(host.clone(), source))?;
    let Some(address) = response.extensions_mut().remove::<UpstreamAddr>() else {
        // Every connection carries the address it was dialled to; without it nobody could say who answered.
        return Err(UpstreamError::Unattributed { host: host.clone() });
    };
    Ok((response.map(Body::new), address))
}

/// When the upstream last got something to do.
#[derive(Clone)]
struct Progress(Arc<Mutex<Upload>>);

struct Upload {
    moved: Instant,
    waits_for_agent: bool,
}

impl Progress {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Upload { moved: Instant::now(), waits_for_agent: false })))
    }

    fn note(&self, waits_for_agent: bool) {
        let mut upload = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *upload = Upload { moved: Instant::now(), waits_for_agent };
    }

    /// Ends when the upstream has had the request, or the last part of it that the agent sent, for too long.
    async fn stalled(&self) {
        loop {
            let (deadline, waits_for_agent) = {
                let upload = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                (upload.moved + RESPONSE_HEAD_TIMEOUT, upload.waits_for_agent)
            };
            let now = Instant::now();
            if deadline <= now && !waits_for_agent {
                return;
            }
            sleep_until(deadline.max(now + PROGRESS_CHECK_INTERVAL)).await;
        }
    }
}

/// The request's body, noting who waits for whom.
struct Watched {
    inner: Body,
    progress: Progress,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = AgentBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AgentBodyError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        self.progress.note(polled.is_pending());
        polled.map_err(AgentBodyError)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.progress.note(false);
    }
}

const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// How late a stall may be noticed when the agent was the one who was waited for.
const PROGRESS_CHECK_INTERVAL: Duration = Duration::from_secs(5);
