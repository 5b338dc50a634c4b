//! A request that servers may take for another one than policy decides about → refused. Pure.

use http::header::TRANSFER_ENCODING;
use http::request::Parts;
use http::{HeaderName, HeaderValue};

use super::destination::FRAGMENT;
use super::head_scan::Sighting;
use super::refuse::Refusal;

/// Refuses what can be read in two ways.
pub(super) fn check(head: &Parts, sighting: Sighting) -> Result<(), Refusal> {
    check_framing(head, sighting)?;
    check_meaning(head, sighting)
}

/// A body that is framed in two ways, or in one that the gateway cannot undo.
fn check_framing(head: &Parts, sighting: Sighting) -> Result<(), Refusal> {
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if sighting.has_content_length {
        let message = "the body has both a Content-Length and a Transfer-Encoding";
        return Err(Refusal::AmbiguousFraming { message });
    }
    // What is coded besides would arrive at the upstream without the field that says so.
    if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")
    {
        let message = "the only transfer coding of a request is chunked";
        return Err(Refusal::AmbiguousFraming { message });
    }
    Ok(())
}

/// A target or fields that make some servers act on another method or path than the request line's.
fn check_meaning(head: &Parts, sighting: Sighting) -> Result<(), Refusal> {
    if sighting.has_fragment {
        return Err(Refusal::bad_request(FRAGMENT));
    }
    if PATH_OVERRIDES.iter().any(|name| head.headers.contains_key(name)) {
        return Err(Refusal::bad_request("a field names another path: send that path itself"));
    }
    let is_other = |value: &HeaderValue| {
        !value.as_bytes().trim_ascii().eq_ignore_ascii_case(head.method.as_str().as_bytes())
    };
    if METHOD_OVERRIDES.iter().any(|name| head.headers.get_all(name).iter().any(is_other)) {
        return Err(Refusal::bad_request("a field names another method: send that method itself"));
    }
    Ok(())
}

/// Obeyed by frameworks and several public APIs, most of them for POST.
const METHOD_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// Rewriting proxies set them, and the frameworks behind route by them.
const PATH_OVERRIDES: [HeaderName; 2] =
    [HeaderName::from_static("x-original-url"), HeaderName::from_static("x-rewrite-url")];
