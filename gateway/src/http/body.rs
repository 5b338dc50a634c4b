//! Bodies: streamed, counted, never held whole.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};

/// A request or response body on its way through the gateway.
pub struct Body(UnsyncBoxBody<Bytes, BodyError>);

/// A body ended before its end.
#[derive(Debug, thiserror::Error)]
#[error("the body ended early")]
pub struct BodyError(#[source] Box<dyn Error + Send + Sync>);

/// The agent's request body ended before its end: told apart from what the upstream did.
#[derive(Debug, thiserror::Error)]
#[error("the agent's request body ended early")]
pub struct AgentBodyError(#[source] pub(crate) BodyError);

/// A body whose data bytes are counted, and which holds `guard` for as long as it lives.
pub(crate) struct Counted<B, G> {
    inner: B,
    count: ByteCount,
    _guard: G,
}

/// Data bytes that went through a body or stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct ByteCount(Arc<AtomicU64>);

// === impl Body ===

impl Body {
    /// Wraps `inner`.
    pub fn new<B>(inner: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        Self(inner.map_err(|error| BodyError(error.into())).boxed_unsync())
    }

    /// A body without bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(Empty::new())
    }

    /// A body of these bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::new(Full::new(bytes.into()))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Body")
    }
}

impl BodyError {
    pub(crate) fn new(source: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(source))
    }
}

// === impl Counted ===

impl<B, G> Counted<B, G> {
    pub(crate) fn new(inner: B, count: ByteCount, guard: G) -> Self {
        Self { inner, count, _guard: guard }
    }
}

impl<B, G> HttpBody for Counted<B, G>
where
    B: HttpBody<Data = Bytes> + Unpin,
    G: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.count.add(data.remaining());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === impl ByteCount ===

impl ByteCount {
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
