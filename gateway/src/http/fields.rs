//! Header fields that belong to one hop are removed in both directions. Pure.

use http::header::{
    CONNECTION, COOKIE, EXPECT, Entry, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Removes what belongs to the hop between the agent and the gateway, and the Host, which the upstream stage
/// writes anew from the permitted destination.
pub(super) fn scrub_request(headers: &mut HeaderMap) {
    let accepts_trailers = accepts_trailers(headers);
    remove_hop_by_hop(headers);
    headers.remove(HOST);
    // The gateway itself asks the agent for its body.
    headers.remove(EXPECT);
    if accepts_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    join_cookies(headers);
}

/// Removes what belongs to the hop between the gateway and the upstream.
pub(super) fn scrub_response(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in nominated(headers) {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The fields that Connection names.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        // Without its framing a message would be another one.
        .filter(|name| name != http::header::CONTENT_LENGTH)
        .collect()
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            coding
                .split(';')
                .next()
                .is_some_and(|name| name.trim().eq_ignore_ascii_case("trailers"))
        })
}

/// HTTP/2 may split the Cookie field; HTTP/1.1 may not (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let Entry::Occupied(cookies) = headers.entry(COOKIE) else { return };
    if cookies.iter().nth(1).is_none() {
        return;
    }
    let parts: Vec<&[u8]> = cookies.iter().map(HeaderValue::as_bytes).collect();
    if let Ok(mut joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        joined.set_sensitive(true);
        headers.insert(COOKIE, joined);
    }
}

const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authentication-info"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(rows: &[(&'static str, &'static str)]) -> HeaderMap {
        rows.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn names(headers: &HeaderMap) -> Vec<String> {
        let mut names: Vec<String> =
            headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
        names.sort();
        names
    }

    #[test]
    fn fields_of_one_hop_do_not_go_to_the_next() {
        let mut map = headers(&[
            ("host", "example.com"),
            ("connection", "keep-alive, X-Private , close, content-length"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic xyz"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("content-length", "3"),
            ("accept", "*/*"),
            ("trailer", "x-sum"),
        ]);
        scrub_request(&mut map);
        assert_eq!(names(&map), ["accept=*/*", "content-length=3", "trailer=x-sum"]);
    }

    #[test]
    fn that_the_agent_takes_trailers_is_passed_on() {
        let mut map = headers(&[("te", "gzip;q=0.5, Trailers"), ("connection", "TE")]);
        scrub_request(&mut map);
        assert_eq!(names(&map), ["te=trailers"]);
    }

    #[test]
    fn cookie_crumbs_become_one_field() {
        let mut map = headers(&[("cookie", "a=1"), ("cookie", "b=2"), ("accept", "*/*")]);
        scrub_request(&mut map);
        assert_eq!(names(&map), ["accept=*/*", "cookie=a=1; b=2"]);
    }

    #[test]
    fn responses_lose_the_fields_of_the_upstreams_hop() {
        let mut map = headers(&[
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("proxy-authenticate", "Basic"),
            ("transfer-encoding", "chunked"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ]);
        scrub_response(&mut map);
        assert_eq!(names(&map), ["set-cookie=a=1", "set-cookie=b=2"]);
    }
}
