use http::{HeaderMap, Request};
use proptest::prelude::*;

use super::*;
use crate::audit::Reason;

fn name(text: &str) -> Host {
    Host::parse(text).unwrap()
}

fn plain(host: &str, port: u16) -> Arrival {
    Arrival { host: name(host), port, in_tunnel: false, transport: Transport::Plain }
}

fn tls(host: &str, port: u16, sni: Option<&str>) -> Arrival {
    let server_name = sni.map(|sni| HostName::parse(sni).unwrap());
    Arrival { transport: Transport::Tls { server_name }, ..plain(host, port) }
}

fn in_tunnel(arrival: Arrival) -> Arrival {
    Arrival { in_tunnel: true, ..arrival }
}

type Fields = &'static [(&'static str, &'static str)];

/// `METHOD target`, then fields.
fn head(line: &str, fields: &[(&'static str, &str)]) -> Parts {
    versioned(Version::HTTP_11, line, fields)
}

fn versioned(version: Version, line: &str, fields: &[(&'static str, &str)]) -> Parts {
    let (method, target) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(target).version(version);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn goes_to(arrival: &Arrival, head: &Parts) -> String {
    match examine(arrival, head) {
        Ok(Asked::Forward(asked)) => format!("{}{}", asked.destination, asked.path.to_target()),
        Ok(Asked::Tunnel { host, port }) => format!("tunnel {host}:{port}"),
        Err(refusal) => format!("{} {}", refusal.status().as_u16(), refusal.reason().code()),
    }
}

const MISMATCH: &str = "421 destination_mismatch";
const BAD: &str = "400 bad_request";

#[test]
fn a_plain_request_goes_where_its_connection_was_made_to_and_nowhere_else() {
    let rows = [
        ("a.example", 80, "a.example", "http://a.example/p?q"),
        ("a.example", 80, "A.EXAMPLE.", "http://a.example/p?q"),
        ("a.example", 80, "a.example:80", "http://a.example/p?q"),
        ("a.example", 8080, "a.example:8080", "http://a.example:8080/p?q"),
        ("a.example", 8080, "a.example", MISMATCH),
        ("a.example", 80, "a.example:8080", MISMATCH),
        ("a.example", 80, "b.example", MISMATCH),
        ("a.example", 80, "sub.a.example", MISMATCH),
        ("a.example", 80, "192.0.2.1", MISMATCH),
        ("192.0.2.1", 80, "192.0.2.1", "http://192.0.2.1/p?q"),
        ("192.0.2.1", 80, "a.example", MISMATCH),
        ("192.0.2.1", 80, "192.0.2.2", MISMATCH),
        ("[2001:db8::1]", 80, "[2001:DB8:0::1]", "http://[2001:db8::1]/p?q"),
        ("a.example", 80, "user@a.example", BAD),
        ("a.example", 80, "user:pw@a.example", BAD),
        ("a.example", 80, "a.example:", BAD),
        ("a.example", 80, "a.example:0", BAD),
        ("a.example", 80, "a.example:+80", BAD),
        ("a.example", 80, "a.example:65616", BAD),
        ("a.example", 80, "", BAD),
        ("a.example", 80, "a.example/x", BAD),
        ("a.example", 80, "0x7f000001", BAD),
    ];
    for (made_to, port, host, expected) in rows {
        let request = head("GET /p?q", &[("host", host)]);
        assert_eq!(goes_to(&plain(made_to, port), &request), expected, "{made_to}:{port} {host:?}");
    }
}

#[test]
fn server_name_host_and_the_connections_name_must_agree() {
    let rows = [
        (tls("a.example", 443, Some("a.example")), "a.example", "https://a.example/"),
        (tls("a.example", 443, Some("a.example")), "a.example:443", "https://a.example/"),
        (tls("a.example", 443, Some("a.example")), "b.example", MISMATCH),
        (tls("a.example", 443, Some("b.example")), "a.example", MISMATCH),
        (tls("a.example", 443, Some("b.example")), "b.example", MISMATCH),
        (tls("a.example", 443, None), "a.example", "https://a.example/"),
        (tls("a.example", 443, None), "b.example", MISMATCH),
        (tls("a.example", 8443, Some("a.example")), "a.example:8443", "https://a.example:8443/"),
        (tls("a.example", 8443, Some("a.example")), "a.example", MISMATCH),
        // The address of a captured connection is no proof: the gateway dials the name.
        (tls("192.0.2.1", 443, Some("a.example")), "a.example", "https://a.example/"),
        (tls("192.0.2.1", 443, Some("a.example")), "192.0.2.1", MISMATCH),
        (tls("192.0.2.1", 443, None), "192.0.2.1", "https://192.0.2.1/"),
        (tls("192.0.2.1", 443, None), "a.example", MISMATCH),
        (in_tunnel(tls("a.example", 443, Some("a.example"))), "a.example", "https://a.example/"),
        (in_tunnel(tls("a.example", 443, Some("b.example"))), "b.example", MISMATCH),
        (in_tunnel(tls("192.0.2.1", 443, Some("a.example"))), "a.example", MISMATCH),
        (in_tunnel(plain("a.example", 80)), "a.example", "http://a.example/"),
        (in_tunnel(plain("a.example", 80)), "b.example", MISMATCH),
    ];
    for (arrival, host, expected) in rows {
        let request = head("GET /", &[("host", host)]);
        assert_eq!(goes_to(&arrival, &request), expected, "{arrival:?} {host}");
    }
}

#[test]
fn a_mismatch_names_what_disagrees() {
    let request = head("GET /", &[("host", "b.example")]);
    let refusal = examine(&tls("c.example", 443, Some("a.example")), &request).unwrap_err();
    assert_eq!(refusal.reason(), Reason::DestinationMismatch);
    let Refusal::DestinationMismatch { sni, host } = refusal else { panic!("{refusal:?}") };
    assert_eq!((sni.as_deref(), host.as_deref()), (Some("a.example"), Some("b.example")));
}

#[test]
fn an_absolute_target_on_a_plain_connection_is_a_proxy_request() {
    let proxy = plain("proxy.example", 3128);
    let rows = [
        ("GET http://a.example/x", "a.example", "http://a.example/x"),
        ("GET http://a.example", "a.example", "http://a.example/"),
        ("GET http://a.example?q", "a.example", "http://a.example/?q"),
        ("GET http://a.example:8080/x", "a.example:8080", "http://a.example:8080/x"),
        ("GET https://a.example/x", "a.example", "https://a.example/x"),
        ("GET https://a.example/x", "a.example:443", "https://a.example/x"),
        ("GET http://a.example/x", "b.example", BAD),
        ("GET http://a.example/x", "proxy.example:3128", BAD),
        ("GET http://a.example:8080/x", "a.example", BAD),
        ("GET ftp://a.example/x", "a.example", BAD),
        ("GET http://user@a.example/x", "a.example", BAD),
        ("GET http://a.example/%2F", "a.example", BAD),
        ("CONNECT a.example:443", "a.example:443", "tunnel a.example:443"),
        ("CONNECT a.example:443", "a.example", "tunnel a.example:443"),
        ("CONNECT a.example:443", "b.example:443", BAD),
        ("CONNECT a.example:443", "a.example:8443", BAD),
        ("CONNECT [2001:db8::1]:443", "[2001:db8::1]:443", "tunnel [2001:db8::1]:443"),
        ("GET a.example:80", "a.example", BAD),
    ];
    for (line, host, expected) in rows {
        assert_eq!(goes_to(&proxy, &head(line, &[("host", host)])), expected, "{line} {host}");
    }
    let old = versioned(Version::HTTP_10, "CONNECT a.example:443", &[]);
    assert_eq!(goes_to(&proxy, &old), "tunnel a.example:443");
    let old = versioned(Version::HTTP_10, "GET http://a.example/", &[]);
    assert_eq!(goes_to(&proxy, &old), "http://a.example/");
}

#[test]
fn an_absolute_target_inside_tls_or_a_tunnel_overrides_nothing() {
    let rows = [
        (
            tls("a.example", 443, Some("a.example")),
            "GET https://a.example/x",
            "a.example",
            "https://a.example/x",
        ),
        (
            tls("a.example", 443, Some("a.example")),
            "GET https://b.example/x",
            "a.example",
            MISMATCH,
        ),
        (
            tls("a.example", 443, Some("a.example")),
            "GET https://b.example/x",
            "b.example",
            MISMATCH,
        ),
        (tls("a.example", 443, Some("a.example")), "GET http://a.example/x", "a.example", BAD),
        (in_tunnel(plain("a.example", 80)), "GET http://b.example/x", "b.example", MISMATCH),
        (in_tunnel(plain("a.example", 80)), "GET https://a.example/x", "a.example", BAD),
    ];
    for (arrival, line, host, expected) in rows {
        assert_eq!(goes_to(&arrival, &head(line, &[("host", host)])), expected, "{line} {host}");
    }
}

#[test]
fn connect_inside_an_intercepted_connection_is_refused() {
    for arrival in [tls("a.example", 443, Some("a.example")), in_tunnel(plain("a.example", 80))] {
        let request = head("CONNECT b.example:443", &[("host", "b.example:443")]);
        assert_eq!(goes_to(&arrival, &request), "405 bad_request");
    }
    let request = versioned(Version::HTTP_2, "CONNECT b.example:443", &[]);
    assert_eq!(goes_to(&plain("a.example", 80), &request), "405 bad_request");
}

#[test]
fn http2_names_its_host_in_the_authority_or_the_host_field_but_not_differently() {
    let arrival = tls("a.example", 443, Some("a.example"));
    let rows: [(&str, Fields, &str); 6] = [
        ("GET https://a.example/", &[], "https://a.example/"),
        ("GET https://a.example/", &[("host", "a.example:443")], "https://a.example/"),
        ("GET https://a.example/", &[("host", "b.example")], MISMATCH),
        ("GET https://b.example/", &[], MISMATCH),
        ("GET /", &[("host", "a.example")], "https://a.example/"),
        ("GET /", &[], BAD),
    ];
    for (line, fields, expected) in rows {
        let request = versioned(Version::HTTP_2, line, fields);
        assert_eq!(goes_to(&arrival, &request), expected, "{line} {fields:?}");
    }
}

#[test]
fn heads_that_servers_read_differently_are_refused() {
    let rows: [(&str, Fields, &str); 12] = [
        ("GET /", &[], BAD),
        ("GET /", &[("host", "a.example"), ("host", "a.example")], BAD),
        ("get /", &[("host", "a.example")], BAD),
        ("Post /", &[("host", "a.example")], BAD),
        ("TRACE /", &[("host", "a.example")], "405 bad_request"),
        ("OPTIONS *", &[("host", "a.example")], BAD),
        ("OPTIONS /", &[("host", "a.example")], "http://a.example/"),
        ("GET /", &[("host", "a.example"), ("expect", "200-ok")], "417 bad_request"),
        ("GET /", &[("host", "a.example"), ("expect", "100-Continue")], "http://a.example/"),
        ("GET /a%2Fb", &[("host", "a.example")], BAD),
        ("GET /a%5cb", &[("host", "a.example")], BAD),
        ("QUERY /", &[("host", "a.example")], "http://a.example/"),
    ];
    for (line, fields, expected) in rows {
        assert_eq!(
            goes_to(&plain("a.example", 80), &head(line, fields)),
            expected,
            "{line} {fields:?}"
        );
    }
    let mut request = head("GET /", &[]);
    let mut fields = HeaderMap::new();
    fields.insert(HOST, http::HeaderValue::from_bytes(b"caf\xC3\xA9.example").unwrap());
    request.headers = fields;
    assert_eq!(goes_to(&plain("a.example", 80), &request), BAD);
}

fn any_host() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "a.example",
        "b.example",
        "A.example.",
        "192.0.2.1",
        "[2001:db8::1]",
    ])
}

proptest! {
    #[test]
    fn an_intercepted_request_goes_to_its_connections_host_and_port_or_nowhere(
        made_to in any_host(),
        port in proptest::sample::select(vec![80_u16, 443, 8080]),
        sni in proptest::option::of(proptest::sample::select(vec!["a.example", "b.example"])),
        target in proptest::option::of((any_host(), proptest::sample::select(vec!["http", "https"]))),
        host in any_host(),
        host_port in proptest::option::of(proptest::sample::select(vec![80_u16, 443, 8080])),
        tunnelled in any::<bool>(),
    ) {
        let arrival = Arrival { in_tunnel: tunnelled, ..tls(made_to, port, sni) };
        let field = host_port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let line = target.map_or_else(
            || "GET /".to_owned(),
            |(host, scheme)| format!("GET {scheme}://{host}:{port}/"),
        );
        if let Ok(asked) = examine(&arrival, &head(&line, &[("host", &field)])) {
            let Asked::Forward(RequestHead { destination, .. }) = asked else { panic!("no tunnel") };
            prop_assert_eq!(destination.scheme, Scheme::Https);
            prop_assert_eq!(destination.port, port);
            prop_assert_eq!(host_port.unwrap_or(443), port);
            prop_assert_eq!(&destination.host, &name(host));
            if let Some(sni) = sni {
                prop_assert_eq!(&destination.host, &name(sni));
            }
            if sni.is_none() || tunnelled || matches!(name(made_to), Host::Name(_)) {
                prop_assert_eq!(&destination.host, &name(made_to));
            }
            if let Some((target, scheme)) = target {
                prop_assert_eq!(scheme, "https");
                prop_assert_eq!(&destination.host, &name(target));
            }
        }
    }
}
