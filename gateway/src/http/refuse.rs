//! Every reply that the gateway itself writes. Pure.

use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::Body;
use crate::audit::Reason;
use crate::net::Host;
use crate::policy::{CredentialName, ExhaustedLimit, RuleName, Window};

/// Why a request is not forwarded, with what the agent is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{message}")]
    BadRequest { status: StatusCode, message: &'static str },
    #[error("the rule `{}` blocks this request", rule.as_str())]
    BlockedByPolicy { rule: RuleName, method: String, path: String },
    #[error("no rule allows this request, and what no rule allows is denied")]
    BlockedByDefault { method: String, host: Host, path: String },
    #[error("the rate limit of the rule `{}` is used up", exhausted.rule.as_str())]
    RateLimited { exhausted: ExhaustedLimit },
    #[error("the counters of rate limits cannot be read or written")]
    StateUnavailable,
    #[error(
        "the TLS server name, the Host and the name that the connection was made to do not agree"
    )]
    DestinationMismatch { sni: Option<String>, host: Option<String> },
    #[error("the address of this host is private, local or reserved, and no rule opens it")]
    BlockedAddress { host: Host },
    #[error("{message}")]
    Upstream { reason: Reason, host: Host, message: &'static str },
    #[error("the credential for this request is not available")]
    CredentialUnavailable { credential: CredentialName },
}

impl Refusal {
    /// A malformed or ambiguous request.
    pub(crate) fn bad_request(message: &'static str) -> Self {
        Self::BadRequest { status: StatusCode::BAD_REQUEST, message }
    }

    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::BadRequest { .. } => Reason::BadRequest,
            Self::BlockedByPolicy { .. } => Reason::BlockedByPolicy,
            Self::BlockedByDefault { .. } => Reason::BlockedByDefaultPolicy,
            Self::RateLimited { .. } => Reason::RateLimited,
            Self::StateUnavailable => Reason::StateUnavailable,
            Self::DestinationMismatch { .. } => Reason::DestinationMismatch,
            Self::BlockedAddress { .. } => Reason::BlockedAddress,
            Self::Upstream { reason, .. } => *reason,
            Self::CredentialUnavailable { .. } => Reason::CredentialUnavailable,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest { status, .. } => *status,
            Self::BlockedByPolicy { .. }
            | Self::BlockedByDefault { .. }
            | Self::BlockedAddress { .. } => StatusCode::FORBIDDEN,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::StateUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::DestinationMismatch { .. } => StatusCode::MISDIRECTED_REQUEST,
            Self::Upstream { reason: Reason::UpstreamTimeout, .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream { .. } | Self::CredentialUnavailable { .. } => StatusCode::BAD_GATEWAY,
        }
    }

    /// The rule that decided, where one did.
    pub(crate) fn rule(&self) -> Option<&RuleName> {
        match self {
            Self::BlockedByPolicy { rule, .. } => Some(rule),
            Self::RateLimited { exhausted } => Some(&exhausted.rule),
            Self::BadRequest { .. }
            | Self::BlockedByDefault { .. }
            | Self::StateUnavailable
            | Self::DestinationMismatch { .. }
            | Self::BlockedAddress { .. }
            | Self::Upstream { .. }
            | Self::CredentialUnavailable { .. } => None,
        }
    }

    /// The reply to a request with `method`.
    pub(crate) fn response(&self, method: &Method) -> Response<Body> {
        let body = self.json();
        // A reply to HEAD has no body; some clients would take one for the next response.
        let is_head = method == Method::HEAD;
        let mut response =
            Response::new(if is_head { Body::empty() } else { Body::full(body.clone()) });
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        if !is_head {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        if self.is_final() {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Self::RateLimited { exhausted } = self {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(exhausted.retry_after)));
        }
        response
    }

    /// The reply as bytes, for a head that no request could be made of; the connection ends with it.
    pub(crate) fn response_bytes(&self) -> Vec<u8> {
        let (status, body) = (self.status(), self.json());
        let reason = status.canonical_reason().unwrap_or("Refused");
        format!(
            "HTTP/1.1 {} {reason}\r\n{CONTENT_TYPE}: {JSON}\r\n{CONTENT_LENGTH}: {}\r\n{SHOULD_RETRY}: false\r\n\
             {CONNECTION}: close\r\n\r\n{body}",
            status.as_u16(),
            body.len()
        )
        .into_bytes()
    }

    /// Whether the same request can never succeed.
    fn is_final(&self) -> bool {
        self.status().is_client_error() && self.status() != StatusCode::TOO_MANY_REQUESTS
    }

    fn json(&self) -> String {
        let mut object = Map::new();
        object.insert("error".to_owned(), json!(self.reason().code()));
        object.insert("message".to_owned(), json!(self.to_string()));
        let fields: Vec<(&str, Value)> = match self {
            Self::BadRequest { .. } | Self::StateUnavailable => vec![],
            Self::BlockedByPolicy { rule, method, path } => {
                vec![
                    ("rule_name", json!(rule.as_str())),
                    ("method", json!(method)),
                    ("path", json!(path)),
                ]
            }
            Self::BlockedByDefault { method, host, path } => {
                vec![
                    ("method", json!(method)),
                    ("host", json!(host.to_string())),
                    ("path", json!(path)),
                ]
            }
            Self::RateLimited { exhausted } => {
                vec![
                    ("limit", json!(exhausted.limit)),
                    ("window", json!(window_word(exhausted.window))),
                ]
            }
            Self::DestinationMismatch { sni, host } => {
                vec![("sni", json!(sni)), ("host", json!(host))]
            }
            Self::BlockedAddress { host } | Self::Upstream { host, .. } => {
                vec![("host", json!(host.to_string()))]
            }
            Self::CredentialUnavailable { credential } => {
                vec![("credential", json!(credential.as_str()))]
            }
        };
        object.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Value::Object(object).to_string()
    }
}

fn window_word(window: Window) -> &'static str {
    match window {
        Window::Minute => "minute",
        Window::Hour => "hour",
        Window::Day => "day",
    }
}

/// Rounded up, and never zero: a client that waits so long finds the window open.
fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

const JSON: &str = "application/json";
/// Clients of several model providers obey it.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
