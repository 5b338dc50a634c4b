//! Every reply that the gateway itself writes. Pure.

use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::Body;
use crate::audit::Reason;
use crate::gateway::Exhausted;
use crate::net::Host;
use crate::policy::{CredentialName, ExhaustedLimit, Limit, RuleName, Unit};
use crate::state::Spent;

/// Why a request is not forwarded, with what the agent is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{message}")]
    BadRequest { status: StatusCode, message: &'static str },
    /// Where the body ends is a matter of opinion: the connection ends with the refusal.
    #[error("{message}")]
    AmbiguousFraming { message: &'static str },
    #[error("the gateway is stopping: try again when it is back")]
    GatewayRestarting,
    #[error("the rule `{}` blocks this request", rule.as_str())]
    BlockedByPolicy { rule: RuleName, method: String, path: String },
    #[error("no rule allows this request, and what no rule allows is denied")]
    BlockedByDefault { method: String, host: Host, path: String },
    #[error("the rate limit of the rule `{}` is used up", exhausted.limit.rule.as_str())]
    RateLimited { exhausted: ExhaustedLimit },
    #[error("{exhausted}: let some of them end first")]
    QuotaExceeded { exhausted: Exhausted },
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
            Self::BadRequest { .. } | Self::AmbiguousFraming { .. } => Reason::BadRequest,
            Self::GatewayRestarting => Reason::GatewayRestarting,
            Self::BlockedByPolicy { .. } => Reason::BlockedByPolicy,
            Self::BlockedByDefault { .. } => Reason::BlockedByDefaultPolicy,
            Self::RateLimited { .. } => Reason::RateLimited,
            Self::QuotaExceeded { exhausted } => exhausted.reason(),
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
            Self::AmbiguousFraming { .. } => StatusCode::BAD_REQUEST,
            Self::BlockedByPolicy { .. }
            | Self::BlockedByDefault { .. }
            | Self::BlockedAddress { .. } => StatusCode::FORBIDDEN,
            Self::RateLimited { .. } | Self::QuotaExceeded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::StateUnavailable | Self::GatewayRestarting => StatusCode::SERVICE_UNAVAILABLE,
            Self::DestinationMismatch { .. } => StatusCode::MISDIRECTED_REQUEST,
            Self::Upstream { reason: Reason::UpstreamTimeout, .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream { .. } | Self::CredentialUnavailable { .. } => StatusCode::BAD_GATEWAY,
        }
    }

    /// The rule that decided, where one did.
    pub(crate) fn rule(&self) -> Option<&RuleName> {
        match self {
            Self::BlockedByPolicy { rule, .. } => Some(rule),
            Self::RateLimited { exhausted } => Some(&exhausted.limit.rule),
            Self::BadRequest { .. }
            | Self::AmbiguousFraming { .. }
            | Self::GatewayRestarting
            | Self::QuotaExceeded { .. }
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
        if let Some(wait) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if let Self::RateLimited { exhausted } = self {
            for (name, value) in rate_limit_fields(exhausted) {
                // A rule's name has no control characters, and what is not ASCII is encoded.
                headers.extend(HeaderValue::try_from(value).ok().map(|value| (name, value)));
            }
        }
        if let Self::AmbiguousFraming { .. } = self {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
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

    /// When the same request may succeed, where that is known.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { exhausted } => Some(exhausted.retry_after),
            Self::GatewayRestarting => Some(RESTART_TIME),
            Self::QuotaExceeded { .. } => Some(QUOTA_TIME),
            _ => None,
        }
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
            Self::BadRequest { .. }
            | Self::AmbiguousFraming { .. }
            | Self::GatewayRestarting
            | Self::StateUnavailable => vec![],
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
                    ("limit", json!(exhausted.limit.budget.limit)),
                    ("unit", json!(exhausted.limit.budget.unit.as_str())),
                    ("window", json!(exhausted.limit.budget.window.as_str())),
                ]
            }
            Self::QuotaExceeded { exhausted } => {
                vec![("quota", json!(exhausted.what.word())), ("limit", json!(exhausted.limit))]
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

impl From<ExhaustedLimit> for Refusal {
    fn from(exhausted: ExhaustedLimit) -> Self {
        Self::RateLimited { exhausted }
    }
}

impl From<&Spent> for Refusal {
    fn from(spent: &Spent) -> Self {
        match spent {
            Spent::Exhausted(exhausted) => exhausted.clone().into(),
            Spent::Unknown => Self::StateUnavailable,
        }
    }
}

/// `RateLimit-Policy` and `RateLimit` for a limit that is used up, as draft-ietf-httpapi-ratelimit-headers-11 has them:
/// lists of structured fields (RFC 9651) with the rule's name as the policy's. The draft registers no unit for tokens.
fn rate_limit_fields(exhausted: &ExhaustedLimit) -> [(HeaderName, String); 2] {
    let ExhaustedLimit { limit: Limit { rule, budget }, retry_after } = exhausted;
    let name = structured_string(rule.as_str());
    let unit = match budget.unit {
        Unit::Requests => "",
        Unit::Bytes => ";qu=\"content-bytes\"",
        Unit::Tokens => ";qu=\"tokens\"",
    };
    let (quota, seconds) = (budget.limit, budget.window.length().as_secs());
    [
        (RATE_LIMIT_POLICY, format!("{name};q={quota};w={seconds}{unit}")),
        (RATE_LIMIT, format!("{name};r=0;t={}", whole_seconds(*retry_after))),
    ]
}

/// A String of RFC 9651, which has ASCII only: other characters are percent-encoded.
fn structured_string(text: &str) -> String {
    let text = text.replace('%', "%25").replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", percent_encoding::utf8_percent_encode(&text, percent_encoding::CONTROLS))
}

/// Rounded up, and never zero: a client that waits so long finds the window open.
fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

/// A restart takes less.
const RESTART_TIME: Duration = Duration::from_secs(5);
/// When something of the workload's own may have ended.
const QUOTA_TIME: Duration = Duration::from_secs(1);
const JSON: &str = "application/json";
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Clients of several model providers obey it.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::policy::{Algorithm, Budget, Window};

    fn upstream(reason: Reason) -> Refusal {
        let host = Host::parse("a.example").unwrap();
        Refusal::Upstream { reason, host, message: "why" }
    }

    fn refusals() -> Vec<(Refusal, u16, &'static str, &'static str)> {
        let host = Host::parse("a.example").unwrap();
        let (method, path) = ("GET".to_owned(), "/a".to_owned());
        let rule = RuleName::parse("rule").unwrap();
        let limit = Limit {
            rule: RuleName::parse("budget").unwrap(),
            budget: Budget {
                limit: 10,
                unit: Unit::Requests,
                window: Window::Hour,
                algorithm: Algorithm::Fixed,
            },
        };
        let exhausted = ExhaustedLimit { limit, retry_after: Duration::from_millis(1500) };
        let blocked = Refusal::BlockedByPolicy { rule, method: method.clone(), path: path.clone() };
        let denied = Refusal::BlockedByDefault { method, host: host.clone(), path };
        let mismatch = Refusal::DestinationMismatch {
            sni: Some("a.example".to_owned()),
            host: Some("b.example".to_owned()),
        };
        let credential = CredentialName::parse("token").unwrap();
        let full = Exhausted { what: crate::gateway::What::Requests, limit: 1024 };
        let too_long = Refusal::BadRequest { status: StatusCode::URI_TOO_LONG, message: "why" };
        // (refusal, status, `error`, what else the object has)
        vec![
            (blocked, 403, "blocked_by_policy", "method path rule_name"),
            (denied, 403, "blocked_by_default_policy", "host method path"),
            (Refusal::RateLimited { exhausted }, 429, "rate_limited", "limit unit window"),
            (mismatch, 421, "destination_mismatch", "host sni"),
            (Refusal::BlockedAddress { host }, 403, "blocked_address", "host"),
            (upstream(Reason::UpstreamUnresolvable), 502, "upstream_unresolvable", "host"),
            (upstream(Reason::UpstreamUnreachable), 502, "upstream_unreachable", "host"),
            (upstream(Reason::UpstreamUntrusted), 502, "upstream_untrusted", "host"),
            (upstream(Reason::UpstreamInvalid), 502, "upstream_invalid", "host"),
            (upstream(Reason::UpstreamTimeout), 504, "upstream_timeout", "host"),
            (
                Refusal::CredentialUnavailable { credential },
                502,
                "credential_unavailable",
                "credential",
            ),
            (Refusal::GatewayRestarting, 503, "gateway_restarting", ""),
            (Refusal::QuotaExceeded { exhausted: full }, 429, "quota_exceeded", "limit quota"),
            (Refusal::StateUnavailable, 503, "state_unavailable", ""),
            (Refusal::bad_request("why"), 400, "bad_request", ""),
            (Refusal::AmbiguousFraming { message: "why" }, 400, "bad_request", ""),
            (too_long, 414, "bad_request", ""),
        ]
    }

    #[tokio::test]
    async fn every_refusal_is_what_the_contract_says() {
        for (refusal, status, error, fields) in refusals() {
            let response = refusal.response(&Method::GET);
            assert_eq!(response.status(), status, "{error}");
            let (head, body) = response.into_parts();
            assert_eq!(head.headers["content-type"], "application/json", "{error}");
            let is_final = matches!(status, 400 | 403 | 405 | 414 | 421);
            let advice = head.headers.get("x-should-retry").map(HeaderValue::as_bytes);
            assert_eq!(advice, is_final.then_some(&b"false"[..]), "{error}");
            let wait = head.headers.get("retry-after").and_then(|value| value.to_str().ok());
            let expected = match error {
                "rate_limited" => Some("2"),
                "gateway_restarting" => Some("5"),
                "quota_exceeded" => Some("1"),
                _ => None,
            };
            assert_eq!(wait, expected, "{error}");
            let body = body.collect().await.unwrap().to_bytes();
            assert_eq!(head.headers["content-length"], body.len().to_string(), "{error}");
            let Value::Object(mut object) = serde_json::from_slice(&body).unwrap() else {
                panic!("{error}: no object");
            };
            assert_eq!(object.remove("error").unwrap(), error);
            assert!(object.remove("message").unwrap().is_string(), "{error}");
            let names: Vec<&str> = object.keys().map(String::as_str).collect();
            assert_eq!(names.join(" "), fields, "{error}");
        }
    }

    #[test]
    fn a_used_up_limit_is_told_in_structured_fields() {
        let rows = [
            ("budget", Unit::Requests, "\"budget\";q=7;w=86400", "\"budget\";r=0;t=2"),
            ("a", Unit::Bytes, "\"a\";q=7;w=86400;qu=\"content-bytes\"", "\"a\";r=0;t=2"),
            ("a", Unit::Tokens, "\"a\";q=7;w=86400;qu=\"tokens\"", "\"a\";r=0;t=2"),
            (
                "é \"1\\2\" 5%",
                Unit::Requests,
                r#""%C3%A9 \"1\\2\" 5%25";q=7;w=86400"#,
                r#""%C3%A9 \"1\\2\" 5%25";r=0;t=2"#,
            ),
        ];
        for (name, unit, policy, limit) in rows {
            let budget =
                Budget { limit: 7, unit, window: Window::Day, algorithm: Algorithm::Fixed };
            let rule = RuleName::parse(name).unwrap();
            let retry_after = Duration::from_millis(1001);
            let exhausted = ExhaustedLimit { limit: Limit { rule, budget }, retry_after };
            let response = Refusal::RateLimited { exhausted }.response(&Method::GET);
            assert_eq!(response.headers()["ratelimit-policy"], policy);
            assert_eq!(response.headers()["ratelimit"], limit);
            assert_eq!(response.headers()["retry-after"], "2");
        }
    }

    #[tokio::test]
    async fn a_refusal_to_head_has_everything_but_the_body() {
        for (refusal, status, error, _fields) in refusals() {
            let (head, body) = refusal.response(&Method::HEAD).into_parts();
            assert_eq!(head.status, status, "{error}");
            assert!(body.collect().await.unwrap().to_bytes().is_empty(), "{error}");
            let (full, _body) = refusal.response(&Method::GET).into_parts();
            for name in ["content-type", "x-should-retry", "retry-after", "ratelimit"] {
                assert_eq!(head.headers.get(name), full.headers.get(name), "{error}: {name}");
            }
        }
    }
}
