//! One request: its audit record, from its head to the end of its answer.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::body::ByteCount;
use super::budget::{BudgetSpent, ByteBudget, TokenBudget, field_bytes, frame_bytes};
use super::head_watch::InFlight;
use super::refuse::Refusal;
use super::serve::Connection;
use super::{Body, BodyError, RequestHead};
use crate::audit::{Decision, Kind, Open, Reason, WouldHave};
use crate::gateway::quota::{Quota, Share};
use crate::net::UpstreamAddr;
use crate::policy::{CredentialName, Permit};
use crate::state::Spent;

/// The open record of one request. It is written when this is dropped: with the end of the answer's body,
/// or wherever the request was given up before.
pub(super) struct Exchange {
    record: Open,
    pub(super) up: ByteCount,
    pub(super) down: ByteCount,
    /// What its bytes count against.
    pub(super) bytes: ByteBudget,
    /// What its tokens count against.
    pub(super) tokens: Option<TokenBudget>,
    /// When the request was handed to the upstream, and when its answer's head came.
    handed_over: Option<Instant>,
    answered: Option<Instant>,
    started: Instant,
    _in_flight: InFlight,
    /// Its share of what the workload may have in flight.
    share: Option<Share>,
}

impl Exchange {
    pub(super) fn open(connection: &Connection, head: &Parts, in_flight: InFlight) -> Self {
        let stages = &connection.stages;
        let mut record = stages.audit.open(Kind::Request, &stages.agent, Reason::ClientClosed);
        record.process = Some(connection.process.clone());
        record.scheme = Some(connection.arrival.scheme().as_str());
        record.method = Some(shortened(head.method.as_str(), METHOD_CHARS_MAX));
        record.host = Some(match head.headers.get(HOST).and_then(|host| host.to_str().ok()) {
            // What it claims, until it is proven.
            Some(claimed) => shortened(claimed, HOST_CHARS_MAX),
            None => connection.arrival.host.to_string(),
        });
        record.port = Some(connection.arrival.port);
        Self {
            record,
            up: ByteCount::default(),
            down: ByteCount::default(),
            bytes: ByteBudget::default(),
            tokens: None,
            handed_over: None,
            answered: None,
            started: Instant::now(),
            _in_flight: in_flight,
            share: None,
        }
    }

    /// Takes a share of what the workload may have in flight, and keeps it to the end of this request.
    pub(super) fn take_share(&mut self, quota: &Quota) -> Result<(), Refusal> {
        let share = quota.request().map_err(|exhausted| Refusal::QuotaExceeded { exhausted })?;
        self.share = Some(share);
        Ok(())
    }

    pub(super) fn set_head(&mut self, head: &RequestHead) {
        let destination = &head.destination;
        self.record.scheme = Some(destination.scheme.as_str());
        self.record.host = Some(destination.host.to_string());
        self.record.port = Some(destination.port);
        self.record.path = Some(head.path.sent.clone());
    }

    pub(super) fn set_refused(&mut self, refusal: &Refusal) {
        self.record.decision = Decision::Block;
        self.record.reason = refusal.reason();
        self.record.status = Some(refusal.status().as_u16());
        self.record.detail.get_or_insert_with(|| refusal.to_string());
        if let Some(rule) = refusal.rule() {
            self.record.rule = Some(rule.as_str().to_owned());
        }
    }

    /// Why the upstream gave no response, for people: the whole chain.
    pub(super) fn set_cause(&mut self, error: &(dyn Error + 'static)) {
        self.record.detail = Some(chain_text(error));
    }

    pub(super) fn set_permitted(&mut self, permit: &Permit) {
        self.record.rule = permit.rule().map(|rule| rule.as_str().to_owned());
    }

    /// What rules in shadow would have made of it.
    pub(super) fn set_would_have(&mut self, would_have: Option<WouldHave>) {
        self.record.would_have = would_have;
    }

    pub(super) fn set_credentials(&mut self, names: &[CredentialName]) {
        if !names.is_empty() {
            let names: Vec<&str> = names.iter().map(CredentialName::as_str).collect();
            self.record.credential = Some(names.join(", "));
        }
    }

    pub(super) fn set_handed_over(&mut self) {
        self.handed_over = Some(Instant::now());
        if let Some(tokens) = &mut self.tokens {
            tokens.set_sent();
        }
    }

    /// Takes account of the answer's head.
    pub(super) fn set_answer_head(&mut self, status: StatusCode, headers: &HeaderMap) {
        if let Some(tokens) = &mut self.tokens {
            tokens.set_answered(status, headers);
        }
        self.bytes.charge(field_bytes(headers));
    }

    /// The upstream was not reached.
    pub(super) fn set_not_sent(&mut self) {
        if let Some(tokens) = &mut self.tokens {
            tokens.set_not_sent();
        }
    }

    /// The exchange leaves HTTP: what cannot be read costs a token a byte, and ends with the limit.
    pub(super) fn set_opaque(&mut self) {
        if let Some(tokens) = self.tokens.take() {
            self.bytes = tokens.into_bytewise(&self.bytes);
        }
    }

    pub(super) fn set_answered(
        &mut self,
        permit: &Permit,
        status: StatusCode,
        upstream: UpstreamAddr,
    ) {
        self.answered = Some(Instant::now());
        self.record.decision = Decision::Allow;
        self.record.reason = permit.reason();
        self.record.status = Some(status.as_u16());
        self.record.upstream = Some(upstream.0.to_string());
        self.settle_gateway_time();
    }

    /// Takes account of a part of the answer's body.
    fn take_in(&mut self, frame: &Frame<Bytes>) -> Result<(), BudgetSpent> {
        let data = frame.data_ref();
        if let (Some(tokens), Some(data)) = (&mut self.tokens, data) {
            tokens.read(data);
        }
        self.bytes.spend(frame_bytes(frame))?;
        self.down.add(data.map_or(0, Bytes::len));
        Ok(())
    }

    /// A limit was used up while the request was on its way.
    fn set_spent(&mut self) {
        let Some(spent) = self.bytes.spent() else { return };
        self.record.decision = Decision::Block;
        self.record.detail = Some(spent.to_string());
        match spent {
            Spent::Exhausted(exhausted) => {
                self.record.reason = Reason::RateLimited;
                self.record.rule = Some(exhausted.limit.rule.as_str().to_owned());
            }
            Spent::Unknown => self.record.reason = Reason::StateUnavailable,
        }
    }

    /// The upstream's body ended before its end.
    pub(super) fn set_body_failed(&mut self) {
        self.record.reason = Reason::UpstreamInvalid;
        self.record.detail = Some("the response's body ended early".to_owned());
    }

    fn settle_gateway_time(&mut self) {
        let waited = match (self.handed_over, self.answered) {
            (Some(handed_over), Some(answered)) => answered.duration_since(handed_over),
            (Some(handed_over), None) => handed_over.elapsed(),
            (None, _) => Duration::ZERO,
        };
        let own = self.started.elapsed().saturating_sub(waited);
        self.record.ms_gateway = own.as_secs_f64() * 1000.0;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // An answered request's own time ended when its head was passed on: bodies are not the gateway's time.
        if self.answered.is_none() {
            self.settle_gateway_time();
        }
        if let Some(tokens) = &mut self.tokens {
            tokens.settle(self.up.get());
        }
        self.set_spent();
        self.record.bytes_up = self.up.get();
        self.record.bytes_down = self.down.get();
    }
}

/// An answer's body: counted, and the end of the request's record.
pub(super) struct Answer {
    inner: Body,
    exchange: Exchange,
    has_ended: bool,
}

impl Answer {
    pub(super) fn new(inner: Body, exchange: Exchange) -> Self {
        let has_ended = inner.is_end_stream();
        Self { inner, exchange, has_ended }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Err(spent) = self.exchange.take_in(frame) {
                    self.has_ended = true;
                    return Poll::Ready(Some(Err(BodyError::new(spent))));
                }
                self.has_ended = self.inner.is_end_stream();
            }
            Poll::Ready(Some(Err(_))) => {
                self.exchange.set_body_failed();
                self.has_ended = true;
            }
            Poll::Ready(None) => self.has_ended = true,
            Poll::Pending => {}
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

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.has_ended {
            self.exchange.record.detail =
                Some("the agent closed before the end of the answer".to_owned());
        }
    }
}

/// Writes the record of a head that no request could be made of.
pub(super) fn record_malformed_head(connection: &Connection, refusal: &Refusal) {
    let stages = &connection.stages;
    let mut record = stages.audit.open(Kind::Request, &stages.agent, refusal.reason());
    record.process = Some(connection.process.clone());
    record.scheme = Some(connection.arrival.scheme().as_str());
    record.host = Some(connection.arrival.host.to_string());
    record.port = Some(connection.arrival.port);
    record.status = Some(refusal.status().as_u16());
    record.detail = Some(refusal.to_string());
}

/// An error and its causes in one line.
pub(super) fn chain_text(error: &(dyn Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |&error| error.source());
    let words: Vec<String> = chain.map(ToString::to_string).collect();
    shortened(&words.join(": "), DETAIL_CHARS_MAX)
}

fn shortened(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

/// Registered methods have at most 17 characters.
const METHOD_CHARS_MAX: usize = 32;
/// A DNS name and a port.
const HOST_CHARS_MAX: usize = 260;
/// An error chain; hyper's texts are short.
const DETAIL_CHARS_MAX: usize = 500;
