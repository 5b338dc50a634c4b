//! What hyper does not tell about the heads of HTTP/1 requests.
//!
//! hyper answers a head that it cannot parse by itself, without a body and without asking anybody; it drops a
//! fragment from the target; and it has one timer for an idle connection and a slow head. This wrapper around
//! the connection sees the bytes, and so knows: a write while no request is in flight and all former bytes are
//! flushed is hyper's own answer. It is replaced by ours with the same status.
//!
//! An agent that closes its sending side may still wait for its answer, or may be gone: nobody can tell. It gets
//! its answer if that does not take too long; then the request is given up, so that upstreams do not work for nobody.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use super::head_scan::{HeadScan, Sighting};
use super::refuse::Refusal;

/// A connection whose heads are watched.
pub(super) struct Watched<S> {
    stream: S,
    watch: HeadWatch,
    timer: Pin<Box<Sleep>>,
    /// Our answer to a malformed head, and how much of it is written.
    answer: Vec<u8>,
    answer_written: usize,
    /// What the agent still sent after its head was refused, once the answer is out.
    lingering: Option<usize>,
}

/// What is known of a connection's heads; clones share it.
#[derive(Clone)]
pub(super) struct HeadWatch {
    state: Arc<Mutex<State>>,
    refusals: Arc<Notify>,
}

/// A request that is not answered to the end: it keeps the connection's timers off.
pub(super) struct InFlight(HeadWatch);

/// A request body that is still read: it keeps the timers off as well, but no answer waits for its end.
pub(super) struct BodyInFlight(HeadWatch);

struct State {
    /// Requests that are not answered to the end.
    exchanges: usize,
    /// Request bodies that are still read.
    bodies: usize,
    /// When the agent closed its sending side, or last got a byte after that.
    closed_since: Option<Instant>,
    /// No bytes of hyper's are unflushed.
    is_flushed: bool,
    /// The connection left HTTP: nothing is watched any more.
    is_released: bool,
    /// The awaited head so far.
    scan: HeadScan,
    /// When the connection became idle.
    idle_since: Instant,
    /// When the first byte of the awaited head came.
    head_since: Option<Instant>,
    /// The status with which hyper refused a head.
    refused: Option<StatusCode>,
    /// Somebody knows of it.
    is_reported: bool,
    /// Who waits for bytes without a deadline, and must be woken when one begins.
    reader: Option<Waker>,
}

impl HeadWatch {
    /// A watch that no stream is wrapped in: it knows only what is in flight.
    pub(super) fn new() -> Self {
        let state = State {
            exchanges: 0,
            bodies: 0,
            closed_since: None,
            is_flushed: true,
            is_released: false,
            scan: HeadScan::default(),
            idle_since: Instant::now(),
            head_since: None,
            refused: None,
            is_reported: true,
            reader: None,
        };
        Self { state: Arc::new(Mutex::new(state)), refusals: Arc::new(Notify::new()) }
    }

    /// Watches `stream`.
    pub(super) fn wrap<S>(stream: S) -> (Watched<S>, Self) {
        let watch = Self::new();
        let watched = Watched {
            stream,
            watch: watch.clone(),
            timer: Box::pin(sleep_until(Instant::now() + IDLE_TIMEOUT)),
            answer: Vec::new(),
            answer_written: 0,
            lingering: None,
        };
        (watched, watch)
    }

    /// A request came, with this target.
    pub(super) fn begin(&self, target: &http::Uri) -> (InFlight, Sighting) {
        let mut state = self.lock();
        state.exchanges += 1;
        state.is_flushed = false;
        state.head_since = None;
        (InFlight(self.clone()), state.scan.take(target))
    }

    /// The connection becomes a tunnel or a WebSocket.
    pub(super) fn release(&self) {
        self.lock().is_released = true;
    }

    /// The status with which a malformed head was refused, once.
    pub(super) fn take_refusal(&self) -> Option<StatusCode> {
        let mut state = self.lock();
        if std::mem::replace(&mut state.is_reported, true) { None } else { state.refused }
    }

    /// Waits until a malformed head is refused; for ever where none is.
    pub(super) async fn refusal(&self) -> StatusCode {
        loop {
            self.refusals.notified().await;
            if let Some(status) = self.take_refusal() {
                return status;
            }
        }
    }

    /// How long nothing has been in flight.
    pub(super) fn idle(&self) -> Option<Duration> {
        let state = self.lock();
        state.is_idle().then(|| state.idle_since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    /// What is left of the request is its body.
    pub(super) fn into_body(self) -> BodyInFlight {
        self.0.lock().bodies += 1;
        BodyInFlight(self.0.clone())
    }
}

impl Clone for InFlight {
    fn clone(&self) -> Self {
        self.0.lock().exchanges += 1;
        Self(self.0.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.exchanges = state.exchanges.saturating_sub(1);
        state.settle();
    }
}

impl Drop for BodyInFlight {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.bodies = state.bodies.saturating_sub(1);
        state.settle();
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.exchanges == 0 && self.bodies == 0
    }

    /// Begins to wait for the next head where nothing is in flight any more.
    fn settle(&mut self) {
        if !self.is_idle() {
            return;
        }
        self.idle_since = Instant::now();
        self.scan = HeadScan::default();
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Whether the agent, which closed its sending side, may still get an answer. It is not known here whether it
    /// sent its body to the end; one that did not is given up as late.
    fn awaits_answer(&self) -> bool {
        !self.is_idle() && !self.is_released
    }

    fn is_watching(&self) -> bool {
        self.is_idle() && !self.is_released
    }

    fn on_read(&mut self, bytes: &[u8]) {
        if !self.is_watching() || bytes.is_empty() {
            return;
        }
        self.head_since.get_or_insert_with(Instant::now);
        self.scan.feed(bytes);
    }

    fn deadline(&self) -> Option<Instant> {
        if let Some(since) = self.closed_since {
            return Some(since + HALF_CLOSED_TIMEOUT);
        }
        self.is_watching().then(|| match self.head_since {
            Some(since) => since + REQUEST_HEAD_TIMEOUT,
            None => self.idle_since + IDLE_TIMEOUT,
        })
    }
}

// === impl Watched ===

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Whether these bytes are an answer of hyper's own; if so they are replaced.
    fn intercepts(&mut self, bytes: &[u8]) -> bool {
        let mut state = self.watch.lock();
        state.closed_since = state.closed_since.map(|_| Instant::now());
        if state.refused.is_some() {
            return true;
        }
        if state.exchanges > 0 || state.is_released || !state.is_flushed {
            return false;
        }
        let status = bytes.get(9..12).and_then(|digits| StatusCode::from_bytes(digits).ok());
        if status == Some(StatusCode::CONTINUE) {
            // A body that is still read after its request was answered.
            return false;
        }
        // hyper says 400 to a version that it does not speak.
        let status = if state.scan.names_an_unknown_version() {
            StatusCode::HTTP_VERSION_NOT_SUPPORTED
        } else {
            status.unwrap_or(StatusCode::BAD_REQUEST)
        };
        state.refused = Some(status);
        state.is_reported = false;
        drop(state);
        self.watch.refusals.notify_one();
        let refusal =
            Refusal::BadRequest { status, message: "the head of the request cannot be parsed" };
        self.answer = refusal.response_bytes();
        true
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) =
            self.answer.get(self.answer_written..).filter(|rest| !rest.is_empty())
        {
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.answer_written += written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ends with an error when the time of what is awaited is over, and with the end of the stream when the agent
    /// closed and nothing more is to be said to it.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (deadline, is_closed) = {
            let mut state = self.watch.lock();
            let is_closed = state.closed_since.is_some();
            if is_closed && !state.awaits_answer() {
                return Poll::Ready(Ok(()));
            }
            let deadline = state.deadline();
            state.reader = (deadline.is_none() || is_closed).then(|| cx.waker().clone());
            (deadline, is_closed)
        };
        let Some(deadline) = deadline else { return Poll::Pending };
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        match self.timer.as_mut().poll(cx) {
            Poll::Ready(()) if is_closed => Poll::Ready(Ok(())),
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads what the agent still sends after its head was refused: closing at once would reset the connection,
    /// and with it the answer.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            let lingered = self.lingering.get_or_insert(0);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if buf.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => *lingered += buf.filled().len(),
                Poll::Ready(Err(_gone)) => return Poll::Ready(Ok(())),
                Poll::Pending => return self.timer.as_mut().poll(cx).map(Ok),
            }
            if *lingered > LINGER_BYTES_MAX {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.watch.lock().closed_since.is_none() {
            match Pin::new(&mut this.stream).poll_read(cx, buf) {
                Poll::Ready(Ok(())) => {
                    let read = buf.filled().get(before..).unwrap_or_default();
                    let mut state = this.watch.lock();
                    state.on_read(read);
                    if !read.is_empty() || !state.awaits_answer() {
                        return Poll::Ready(Ok(()));
                    }
                    state.closed_since = Some(Instant::now());
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        this.poll_deadline(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.intercepts(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
        if self.intercepts(first) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            // hyper flushes the stream only when its own buffer is empty.
            let mut state = self.watch.lock();
            state.is_flushed = state.exchanges == 0;
        }
        std::task::ready!(self.poll_answer(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_answer(cx))?;
        if self.lingering.is_none() {
            std::task::ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            if self.answer.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.lingering = Some(0);
            self.timer.as_mut().reset(Instant::now() + LINGER_TIMEOUT);
        }
        self.poll_linger(cx)
    }
}

/// From the first byte of a request's head to its last.
pub(super) const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Between requests.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long, and for how many bytes, a refused agent may still be sending.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 1024 * 1024;
/// How long an agent that closed its sending side may wait for the next byte of its answer.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(30);
