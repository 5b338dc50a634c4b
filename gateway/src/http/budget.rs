//! What one request uses of limits in bytes and tokens, from its head to the end of its answer.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::BodyError;
use super::usage::UsageReader;
use crate::policy::ExhaustedLimit;
use crate::state::{Meter, Spent};

/// The limits in bytes that a request counts against. Clones share them; empty ones cost nothing.
#[derive(Clone, Default)]
pub(super) struct ByteBudget(Option<Arc<Bytewise>>);

struct Bytewise {
    meters: Vec<Meter>,
    spent: OnceLock<Spent>,
}

/// Nothing more may be moved.
#[derive(Debug, thiserror::Error)]
#[error("a limit in bytes is used up")]
pub(super) struct BudgetSpent;

/// A body that ends with an error when its budget does. What exceeds the budget is not passed on.
pub(super) struct Budgeted<B> {
    inner: B,
    budget: ByteBudget,
}

/// The limits in tokens that a request counts against. Its exchange settles it in the end, whatever became of it.
pub(super) struct TokenBudget {
    meters: Vec<Meter>,
    /// Whether the request's method can make a model write something.
    generates: bool,
    progress: Progress,
    charged: u64,
}

/// How far a request came whose answer costs tokens.
enum Progress {
    /// It was not sent, or its answer costs nothing.
    Free,
    /// It was sent.
    Waiting,
    /// Its answer's body is on its way.
    Answered(Box<UsageReader>),
}

// === impl ByteBudget ===

impl ByteBudget {
    pub(super) fn new(meters: Vec<Meter>) -> Self {
        let spent = OnceLock::new();
        Self((!meters.is_empty()).then(|| Arc::new(Bytewise { meters, spent })))
    }

    /// Uses up so many bytes.
    ///
    /// # Errors
    /// When there was less left: they must not be passed on.
    pub(super) fn spend(&self, bytes: usize) -> Result<(), BudgetSpent> {
        let Some(bytewise) = &self.0 else { return Ok(()) };
        let now = SystemTime::now();
        let amount = u64::try_from(bytes).unwrap_or(u64::MAX);
        // Every limit is charged, also behind one that is used up.
        for meter in &bytewise.meters {
            if let Err(spent) = meter.spend(amount, now) {
                bytewise.spent.get_or_init(|| spent);
            }
        }
        if bytewise.spent.get().is_some() { Err(BudgetSpent) } else { Ok(()) }
    }

    /// Uses up what is passed on in any case; if nothing is left, what comes next is not.
    pub(super) fn charge(&self, bytes: usize) {
        if let Some(bytewise) = &self.0 {
            charge_all(&bytewise.meters, u64::try_from(bytes).unwrap_or(u64::MAX));
        }
    }

    /// Why nothing more may be moved, if that is so.
    pub(super) fn spent(&self) -> Option<&Spent> {
        self.0.as_ref()?.spent.get()
    }
}

/// The bytes of a request's head, as they stand in HTTP/1.1.
pub(super) fn head_bytes(head: &Parts) -> usize {
    let target = head.uri.path_and_query().map_or(1, |target| target.as_str().len());
    head.method.as_str().len() + target + LINE_BYTES + field_bytes(&head.headers)
}

/// The bytes of header fields, as they stand in HTTP/1.1.
pub(super) fn field_bytes(headers: &HeaderMap) -> usize {
    let fields = headers.iter();
    fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum()
}

/// The bytes of data or trailers.
pub(super) fn frame_bytes(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map(Bytes::len).or_else(|| frame.trailers_ref().map(field_bytes)).unwrap_or(0)
}

/// Two blanks, the version, and the end of the line.
const LINE_BYTES: usize = 12;
/// A colon, a blank, and the end of the line.
const FIELD_BYTES: usize = 4;

// === impl Budgeted ===

impl<B> Budgeted<B> {
    pub(super) fn new(inner: B, budget: ByteBudget) -> Self {
        Self { inner, budget }
    }
}

impl<B> HttpBody for Budgeted<B>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Err(spent) = self.budget.spend(frame_bytes(frame))
        {
            return Poll::Ready(Some(Err(BodyError::new(spent))));
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

// === impl TokenBudget ===

impl TokenBudget {
    /// None where there is nothing to count.
    pub(super) fn new(meters: Vec<Meter>, method: &Method) -> Option<Self> {
        let generates =
            !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE);
        (!meters.is_empty()).then_some(Self {
            meters,
            generates,
            progress: Progress::Free,
            charged: 0,
        })
    }

    /// The request is on its way.
    pub(super) fn set_sent(&mut self) {
        self.progress = Progress::Waiting;
    }

    /// The upstream was not reached.
    pub(super) fn set_not_sent(&mut self) {
        self.progress = Progress::Free;
    }

    /// The head of the answer came.
    pub(super) fn set_answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.progress = if status.is_success() {
            Progress::Answered(Box::new(UsageReader::new(headers)))
        } else {
            Progress::Free
        };
    }

    /// A part of the answer's body came.
    pub(super) fn read(&mut self, data: &[u8]) {
        if let Progress::Answered(reader) = &mut self.progress {
            reader.push(data);
            let reported = reader.reported();
            self.charge(reported);
        }
    }

    /// Charges what it cost in the end; the request's body had so many bytes.
    pub(super) fn settle(&mut self, request_bytes: u64) {
        let cost = match &self.progress {
            Progress::Free => 0,
            Progress::Waiting if self.generates => request_bytes,
            Progress::Answered(reader) if self.generates => reader.cost(request_bytes),
            Progress::Answered(reader) => reader.reported(),
            Progress::Waiting => 0,
        };
        self.charge(cost);
    }

    /// What cannot be read costs a token a byte, and ends with the limit.
    pub(super) fn into_bytewise(mut self, bytes: &ByteBudget) -> ByteBudget {
        let mut meters = std::mem::take(&mut self.meters);
        meters.extend(bytes.0.iter().flat_map(|bytewise| bytewise.meters.iter().cloned()));
        ByteBudget::new(meters)
    }

    /// Charges what the request cost so far, less what was charged before.
    fn charge(&mut self, cost: u64) {
        let more = cost.saturating_sub(self.charged);
        if more == 0 {
            return;
        }
        self.charged = cost;
        // What a model has written is passed on; the next request is refused.
        charge_all(&self.meters, more);
    }
}

fn charge_all(meters: &[Meter], amount: u64) {
    let now = SystemTime::now();
    for meter in meters {
        if let Err(spent) = meter.spend(amount, now) {
            tracing::debug!(%spent, "nothing is left");
        }
    }
}

// === impl Spent ===

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted(ExhaustedLimit { limit, .. }) => {
                write!(f, "the limit of the rule `{}` was used up on the way", limit.rule)
            }
            Self::Unknown => f.write_str("what is left of a limit was unknown on the way"),
        }
    }
}
