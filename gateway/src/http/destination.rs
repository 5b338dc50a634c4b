//! How a connection was made, and the head of a request on it → where the request goes, proven. Pure.
//!
//! Everything that names a destination must agree. Where it does not, the request is refused: nothing is
//! guessed, and no source is trusted over another.

use http::header::{EXPECT, HOST};
use http::request::Parts;
use http::{Method, StatusCode, Version};

use super::refuse::Refusal;
use super::{PathError, RequestHead, RequestPath};
use crate::net::{Destination, Host, HostName, Scheme};

/// What is known of a connection before its requests are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Where the agent connected to: the synthetic address's name, the address itself, or what CONNECT named.
    pub(crate) host: Host,
    /// The port it connected to.
    pub(crate) port: u16,
    /// Whether it came through CONNECT.
    pub(crate) in_tunnel: bool,
    /// What it was wrapped in.
    pub(crate) transport: Transport,
}

/// Plain or TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Plain text.
    Plain,
    /// TLS that the gateway terminated.
    Tls {
        /// The name in the ClientHello.
        server_name: Option<HostName>,
    },
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To be forwarded.
    Forward(RequestHead),
    /// A tunnel through the gateway as an explicit proxy.
    Tunnel {
        /// CONNECT's host.
        host: Host,
        /// CONNECT's port.
        port: u16,
    },
}

/// A host and perhaps a port, as a Host field, `:authority` or a URI names them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Authority {
    host: Host,
    port: Option<u16>,
}

/// Proves where the request with this head goes.
pub(crate) fn examine(arrival: &Arrival, head: &Parts) -> Result<Asked, Refusal> {
    check_method(&head.method)?;
    check_expectation(head)?;
    let host_field = host_field(head)?;
    if head.method == Method::CONNECT {
        return tunnel(arrival, head, host_field);
    }
    if head.uri.path() == "*" {
        return Err(Refusal::bad_request("the target `*` names no path"));
    }
    let is_absolute = head.uri.scheme().is_some() && head.uri.authority().is_some();
    if head.uri.authority().is_some() && !is_absolute {
        return Err(Refusal::bad_request("the target is neither a path nor an absolute URI"));
    }
    let is_http1 = head.version < Version::HTTP_2;
    let destination = match arrival.transport {
        Transport::Plain if is_absolute && is_http1 && !arrival.in_tunnel => {
            proxied(head, host_field)?
        }
        Transport::Plain | Transport::Tls { .. } => intercepted(arrival, head, host_field)?,
    };
    Ok(Asked::Forward(RequestHead {
        method: head.method.as_str().to_owned(),
        destination,
        path: request_path(head)?,
    }))
}

/// A request whose destination is where its connection was made to.
fn intercepted(
    arrival: &Arrival,
    head: &Parts,
    host_field: Option<Authority>,
) -> Result<Destination, Refusal> {
    let scheme = arrival.scheme();
    if head.uri.scheme_str().is_some_and(|named| named != scheme.as_str()) {
        return Err(Refusal::bad_request("the target's scheme is not the connection's"));
    }
    let target = head.uri.authority().map(|a| Authority::parse(a.as_str())).transpose()?;
    let mismatch = || Refusal::DestinationMismatch {
        sni: arrival.server_name().map(ToString::to_string),
        host: claimed_host(head),
    };
    let claimed = match (target, host_field) {
        (Some(target), Some(field)) if target.with_port(scheme) != field.with_port(scheme) => {
            return Err(mismatch());
        }
        (Some(named), _) | (None, Some(named)) => named.with_port(scheme),
        (None, None) => return Err(Refusal::bad_request("the request names no host")),
    };
    let expected = arrival.proven_host().ok_or_else(mismatch)?;
    if claimed == (expected.clone(), arrival.port) {
        Ok(Destination { scheme, host: expected, port: arrival.port })
    } else {
        Err(mismatch())
    }
}

/// An absolute-form request to the gateway as an explicit proxy: its target is the destination.
fn proxied(head: &Parts, host_field: Option<Authority>) -> Result<Destination, Refusal> {
    let scheme = match head.uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        _ => return Err(Refusal::bad_request("the target's scheme is neither http nor https")),
    };
    let text = head.uri.authority().map_or("", http::uri::Authority::as_str);
    let (host, port) = Authority::parse(text)?.with_port(scheme);
    match host_field {
        Some(field) if field.with_port(scheme) != (host.clone(), port) => {
            Err(Refusal::bad_request("the Host is not the host of the target"))
        }
        Some(_) | None => Ok(Destination { scheme, host, port }),
    }
}

fn tunnel(
    arrival: &Arrival,
    head: &Parts,
    host_field: Option<Authority>,
) -> Result<Asked, Refusal> {
    let is_proxy_request = arrival.transport == Transport::Plain
        && !arrival.in_tunnel
        && head.version < Version::HTTP_2;
    if !is_proxy_request {
        return Err(Refusal::BadRequest {
            status: StatusCode::METHOD_NOT_ALLOWED,
            message: "CONNECT has no place inside an intercepted connection",
        });
    }
    let text = head.uri.authority().map_or("", http::uri::Authority::as_str);
    let Authority { host, port: Some(port) } = Authority::parse(text)? else {
        return Err(Refusal::bad_request("the target of CONNECT has no port"));
    };
    match host_field {
        // Clients differ in whether their Host repeats the port.
        Some(field) if field.host != host || field.port.is_some_and(|named| named != port) => {
            Err(Refusal::bad_request("the Host is not the host of the target"))
        }
        Some(_) | None => Ok(Asked::Tunnel { host, port }),
    }
}

fn check_method(method: &Method) -> Result<(), Refusal> {
    if method == Method::TRACE {
        return Err(Refusal::BadRequest {
            status: StatusCode::METHOD_NOT_ALLOWED,
            message: "TRACE would show the agent its own credentials",
        });
    }
    let text = method.as_str();
    if KNOWN_METHODS.iter().any(|known| known.eq_ignore_ascii_case(text) && *known != text) {
        return Err(Refusal::bad_request("methods are case-sensitive"));
    }
    Ok(())
}

fn check_expectation(head: &Parts) -> Result<(), Refusal> {
    let is_known =
        |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if head.headers.get_all(EXPECT).iter().all(is_known) {
        return Ok(());
    }
    Err(Refusal::BadRequest {
        status: StatusCode::EXPECTATION_FAILED,
        message: "the only expectation that can be met is 100-continue",
    })
}

/// The Host field: one, or none where the target may serve.
fn host_field(head: &Parts) -> Result<Option<Authority>, Refusal> {
    let mut fields = head.headers.get_all(HOST).iter();
    let first = fields.next();
    if fields.next().is_some() {
        return Err(Refusal::bad_request("the request has several Host fields"));
    }
    match first {
        Some(value) => match value.to_str() {
            Ok(text) => Authority::parse(text).map(Some),
            Err(_not_ascii) => Err(Refusal::bad_request("the Host is malformed")),
        },
        // HTTP/1.1 demands it, HTTP/2 has `:authority`, and an HTTP/1.0 proxy request has its target.
        None if head.version == Version::HTTP_2 => Ok(None),
        None if head.version == Version::HTTP_10 && head.uri.authority().is_some() => Ok(None),
        None => Err(Refusal::bad_request("the request has no Host")),
    }
}

fn request_path(head: &Parts) -> Result<RequestPath, Refusal> {
    let path = head.uri.path();
    let path = if path.is_empty() { "/" } else { path };
    let target = match head.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    RequestPath::parse(&target).map_err(|error| {
        let status = match error {
            PathError::TooLong => StatusCode::URI_TOO_LONG,
            _ => StatusCode::BAD_REQUEST,
        };
        let message = match error {
            PathError::NotAbsolute => "the path does not start with a slash",
            PathError::InvalidEncoding => "the path has an invalid percent-encoding",
            PathError::AmbiguousEncoding => "the path has an encoded slash, backslash or NUL",
            PathError::Fragment => FRAGMENT,
            PathError::TooLong => "the path is too long",
            PathError::InvalidCharacter => "the target has a character that no URI has",
        };
        Refusal::BadRequest { status, message }
    })
}

/// What the agent said the host is, for the refusal's fields.
fn claimed_host(head: &Parts) -> Option<String> {
    let text = match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => head.headers.get(HOST).and_then(|value| value.to_str().ok()),
    };
    text.map(|text| text.chars().take(CLAIMED_HOST_CHARS_MAX).collect())
}

pub(super) const FRAGMENT: &str = "the request target has a fragment";

/// What a refusal repeats of a claimed host: a DNS name and a port.
const CLAIMED_HOST_CHARS_MAX: usize = 260;

const KNOWN_METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"];

// === impl Arrival ===

impl Arrival {
    /// How requests travel on this connection.
    pub(crate) fn scheme(&self) -> Scheme {
        match self.transport {
            Transport::Plain => Scheme::Http,
            Transport::Tls { .. } => Scheme::Https,
        }
    }

    fn server_name(&self) -> Option<&HostName> {
        match &self.transport {
            Transport::Plain => None,
            Transport::Tls { server_name } => server_name.as_ref(),
        }
    }

    /// The one host that requests may name, or none where the connection contradicts itself.
    fn proven_host(&self) -> Option<Host> {
        match (&self.host, self.server_name()) {
            (host, None) => Some(host.clone()),
            (Host::Name(name), Some(server_name)) => {
                (name == server_name).then(|| self.host.clone())
            }
            // The address of a captured connection proves nothing: the gateway dials by the name. CONNECT's
            // host is a statement of the client, so that another name is a contradiction.
            (Host::Ip(_), Some(server_name)) => {
                (!self.in_tunnel).then(|| Host::Name(server_name.clone()))
            }
        }
    }
}

// === impl Authority ===

impl Authority {
    fn parse(text: &str) -> Result<Self, Refusal> {
        const MALFORMED: &str = "the host is malformed";
        if text.contains('@') {
            return Err(Refusal::bad_request("the host has user information"));
        }
        let bracket = text.rfind(']').unwrap_or(0);
        let (host, port) = match text.rfind(':') {
            Some(colon) if colon > bracket => {
                (text.get(..colon), Some(text.get(colon + 1..).and_then(parse_port)))
            }
            Some(_) | None => (Some(text), None),
        };
        let host = host
            .and_then(|host| Host::parse(host).ok())
            .ok_or_else(|| Refusal::bad_request(MALFORMED))?;
        match port {
            Some(None) => Err(Refusal::bad_request(MALFORMED)),
            Some(Some(port)) => Ok(Self { host, port: Some(port) }),
            None => Ok(Self { host, port: None }),
        }
    }

    fn with_port(&self, scheme: Scheme) -> (Host, u16) {
        (self.host.clone(), self.port.unwrap_or_else(|| scheme.default_port()))
    }
}

fn parse_port(digits: &str) -> Option<u16> {
    let port = digits.parse().ok()?;
    (port != 0 && digits.bytes().all(|b| b.is_ascii_digit())).then_some(port)
}

#[cfg(test)]
mod tests;
