//! What a rule is about: conditions and a request as a client writes it → whether it is among them.

use http::request::Parts;
use http::{Request, Version};

use super::*;
use crate::http::{Arrival, Asked, Transport, examine};

/// How a request stands to the conditions of a rule.
const ALL: &str = "under every reading";
const SOME: &str = "under some reading";
const NONE: &str = "under no reading";
const BAD: &str = "400";
const NOT_ALLOWED: &str = "405";

/// Conditions, a request line with the URL as it is written, and how the two stand to each other. Each row is tried with
/// a rule that allows, which must apply under every reading only, and with one that blocks, which must under some.
type Row = (&'static str, &'static str, &'static str);

const HOSTS: &[Row] = &[
    ("", "GET https://anything.example.net/", ALL),
    ("", "GET http://192.0.2.9:8080/x", ALL),
    // One host, however it is written.
    ("hosts = ['api.example.com']", "GET https://api.example.com/", ALL),
    ("hosts = ['api.example.com']", "GET https://API.Example.COM/", ALL),
    ("hosts = ['api.example.com']", "GET https://api.example.com./", ALL),
    ("hosts = ['api.example.com']", "GET https://api.example.com:443/", ALL),
    ("hosts = ['api.example.com']", "GET https://api.example.com.:443/", ALL),
    ("hosts = ['api.example.com']", "GET http://api.example.com:80/", ALL),
    ("hosts = ['API.EXAMPLE.COM.']", "GET https://api.example.com/", ALL),
    ("hosts = ['api.example.com']", "GET https://api.example.com:8443/", ALL),
    // Other hosts, however alike.
    ("hosts = ['api.example.com']", "GET https://example.com/", NONE),
    ("hosts = ['api.example.com']", "GET https://xapi.example.com/", NONE),
    ("hosts = ['api.example.com']", "GET https://x.api.example.com/", NONE),
    ("hosts = ['api.example.com']", "GET https://api.example.com.evil.example/", NONE),
    ("hosts = ['api.example.com']", "GET https://api.example.co/", NONE),
    ("hosts = ['api.example.com']", "GET https://api-example.com/", NONE),
    ("hosts = ['api.example.com', 'b.example.com']", "GET https://b.example.com/", ALL),
    ("hosts = ['api.example.com', 'b.example.com']", "GET https://c.example.com/", NONE),
    // Everything below a domain.
    ("hosts = ['*.example.com']", "GET https://a.example.com/", ALL),
    ("hosts = ['*.example.com']", "GET https://a.b.c.example.com/", ALL),
    ("hosts = ['*.example.com']", "GET https://A.EXAMPLE.com./", ALL),
    ("hosts = ['*.Example.COM']", "GET https://a.example.com/", ALL),
    ("hosts = ['*.example.com']", "GET https://example.com/", NONE),
    ("hosts = ['*.example.com']", "GET https://notexample.com/", NONE),
    ("hosts = ['*.example.com']", "GET https://a.example.com.evil.example/", NONE),
    ("hosts = ['*.example.com']", "GET https://a.example.comx/", NONE),
    ("hosts = ['*.a.example.com']", "GET https://b.example.com/", NONE),
    ("hosts = ['*.example.com', 'example.com']", "GET https://example.com/", ALL),
    ("hosts = ['_sip.example.com']", "GET https://_SIP.example.com/", ALL),
    // Names of other scripts are their A-labels.
    ("hosts = ['bücher.example.com']", "GET https://xn--bcher-kva.example.com/", ALL),
    ("hosts = ['BÜCHER.example.com']", "GET https://XN--BCHER-KVA.example.com/", ALL),
    ("hosts = ['xn--bcher-kva.example.com']", "GET https://xn--bcher-kva.example.com/", ALL),
    ("hosts = ['*.bücher.example']", "GET https://a.xn--bcher-kva.example/", ALL),
    ("hosts = ['faß.example.com']", "GET https://xn--fa-hia.example.com/", ALL),
    ("hosts = ['faß.example.com']", "GET https://fass.example.com/", NONE),
    ("hosts = ['example。com']", "GET https://example.com/", ALL),
    ("hosts = ['еxample.com']", "GET https://example.com/", NONE),
    ("hosts = ['api.example.com']", "GET https://xn--pi-7kc.example.com/", NONE),
    // Addresses.
    ("hosts = ['192.0.2.1']", "GET https://192.0.2.1/", ALL),
    ("hosts = ['192.0.2.1']", "GET https://192.0.2.10/", NONE),
    ("hosts = ['192.0.2.1']", "GET https://[::ffff:192.0.2.1]/", ALL),
    ("hosts = ['192.0.2.1']", "GET https://[::ffff:c000:201]/", ALL),
    ("hosts = ['::ffff:192.0.2.1']", "GET https://192.0.2.1/", ALL),
    ("hosts = ['2001:db8::1']", "GET https://[2001:db8::1]/", ALL),
    ("hosts = ['2001:db8::1']", "GET https://[2001:DB8:0:0:0:0:0:1]/", ALL),
    ("hosts = ['2001:db8::1']", "GET https://[2001:0db8:0000::0001]:443/", ALL),
    ("hosts = ['[2001:db8::1]']", "GET https://[2001:db8:0::1]:8443/", ALL),
    ("hosts = ['2001:db8::1']", "GET https://[2001:db8::2]/", NONE),
    ("hosts = ['2001:db8::c000:201']", "GET https://[2001:db8::192.0.2.1]/", ALL),
    ("hosts = ['*.example.com']", "GET https://192.0.2.1/", NONE),
    ("hosts = ['localhost']", "GET https://localhost/", ALL),
    ("hosts = ['127.0.0.1']", "GET https://localhost/", NONE),
    // What servers and clients would read in different ways is no host.
    ("", "GET https://0x7f000001/", BAD),
    ("", "GET https://2130706433/", BAD),
    ("", "GET https://127.1/", BAD),
    ("", "GET https://0177.0.0.1/", BAD),
    ("", "GET https://192.0.2.1./", BAD),
    ("", "GET https://192.0.2.256/", BAD),
    ("", "GET https://1.2.3.4.5/", BAD),
    ("", "GET https://[::1/", BAD),
    ("", "GET https://[fe80::1%25eth0]/", BAD),
    ("", "GET https://[192.0.2.1]/", BAD),
    ("", "GET https://ex%61mple.com/", BAD),
    ("", "GET https://api_.example.com%00/", BAD),
    ("", "GET https://bücher.example.com/", BAD),
    ("", "GET https://user@example.com/", BAD),
    ("", "GET https://a..example.com/", BAD),
    ("", "GET https://example.com../", BAD),
    ("", "GET https://.example.com/", BAD),
    ("", "GET https://-a.example.com/", BAD),
    ("", "GET https://*.example.com/", BAD),
    ("", "GET https://a,b.example.com/", BAD),
    ("", "GET https://example.com:0/", BAD),
    ("", "GET https://example.com:65536/", BAD),
    ("", "GET https://example.com:+443/", BAD),
    ("", "GET https://example.com:/", BAD),
];

const BESIDE_PATHS: &[Row] = &[
    ("ports = [443]", "GET https://a.example.com/", ALL),
    ("ports = [443]", "GET https://a.example.com:443/", ALL),
    ("ports = [443]", "GET https://a.example.com:8443/", NONE),
    ("ports = [443]", "GET http://a.example.com/", NONE),
    ("ports = [443]", "GET http://a.example.com:443/", ALL),
    ("ports = [80, 8443]", "GET https://a.example.com:8443/", ALL),
    ("protocol = 'https'", "GET https://a.example.com:8443/", ALL),
    ("protocol = 'https'", "GET http://a.example.com/", NONE),
    ("protocol = 'https'", "GET http://a.example.com:443/", NONE),
    ("protocol = 'http'", "GET http://a.example.com/", ALL),
    ("protocol = 'http'", "GET https://a.example.com:80/", NONE),
    ("methods = ['GET']", "GET https://a.example.com/", ALL),
    ("methods = ['get']", "GET https://a.example.com/", ALL),
    ("methods = ['GET']", "HEAD https://a.example.com/", NONE),
    ("methods = ['GET']", "POST https://a.example.com/", NONE),
    ("methods = ['GET', 'DELETE']", "DELETE https://a.example.com/", ALL),
    ("methods = ['PROPFIND']", "PROPFIND https://a.example.com/", ALL),
    ("methods = ['PROPFIND']", "propfind https://a.example.com/", NONE),
    ("methods = ['PROPFIND', 'GET']", "MKCOL https://a.example.com/", NONE),
    ("methods = ['GET', 'PROPFIND']", "GET https://a.example.com/", ALL),
    ("methods = ['OPTIONS']", "OPTIONS https://a.example.com/", ALL),
    ("", "get https://a.example.com/", BAD),
    ("", "Post https://a.example.com/", BAD),
    ("", "TRACE https://a.example.com/", NOT_ALLOWED),
    ("agents = ['child']", "GET https://a.example.com/", ALL),
    ("agents = ['parent']", "GET https://a.example.com/", ALL),
    ("agents = ['grandparent']", "GET https://a.example.com/", ALL),
    ("agents = ['other', 'parent']", "GET https://a.example.com/", ALL),
    ("agents = ['other']", "GET https://a.example.com/", NONE),
    ("agents = ['grandchild']", "GET https://a.example.com/", NONE),
    ("methods = ['GET']\nports = [8443]", "GET https://a.example.com:8443/", ALL),
    ("methods = ['GET']\nports = [8443]", "GET https://a.example.com/", NONE),
    ("methods = ['POST']\nports = [443]", "GET https://a.example.com/", NONE),
    ("hosts = ['b.example.com']\npaths = ['/*']", "GET https://a.example.com/", NONE),
    ("enabled = false", "GET https://a.example.com/", NONE),
    ("mode = 'shadow'", "GET https://a.example.com/", NONE),
    ("expires = 1969-12-31T23:59:59Z", "GET https://a.example.com/", NONE),
    ("expires = 1970-01-01T00:00:00Z", "GET https://a.example.com/", NONE),
    ("expires = 1970-01-01T00:00:01Z", "GET https://a.example.com/", ALL),
    ("days = ['thu']", "GET https://a.example.com/", ALL),
    ("days = ['fri-wed']", "GET https://a.example.com/", NONE),
    ("hours = ['00:00-00:01']", "GET https://a.example.com/", ALL),
    ("hours = ['00:01-24:00']", "GET https://a.example.com/", NONE),
];

const PATHS: &[Row] = &[
    ("paths = ['/*']", "GET https://a.example.com", ALL),
    ("paths = ['/*']", "GET https://a.example.com/x/y?z", ALL),
    ("paths = ['/a']", "GET https://a.example.com/a", ALL),
    ("paths = ['/a']", "GET https://a.example.com/a?b=/c", ALL),
    ("paths = ['/a']", "GET https://a.example.com/A", NONE),
    ("paths = ['/a']", "GET https://a.example.com/a/b", NONE),
    ("paths = ['/a']", "GET https://a.example.com/ab", NONE),
    ("paths = ['/a', '/b']", "GET https://a.example.com/b", ALL),
    ("paths = ['/a/*']", "GET https://a.example.com/a", ALL),
    ("paths = ['/a/*']", "GET https://a.example.com/a/", ALL),
    ("paths = ['/a/*']", "GET https://a.example.com/a/b/c", ALL),
    ("paths = ['/a/*']", "GET https://a.example.com/ab", NONE),
    ("paths = ['/a*']", "GET https://a.example.com/ab/c", ALL),
    ("paths = ['/a*']", "GET https://a.example.com/ba", NONE),
    ("paths = ['/repos/*/issues']", "GET https://a.example.com/repos/x/issues", ALL),
    ("paths = ['/repos/*/issues']", "GET https://a.example.com/repos/x/y/issues", NONE),
    ("paths = ['/repos/*/issues']", "GET https://a.example.com/repos/issues", NONE),
    ("paths = ['/repos/*/issues/*']", "GET https://a.example.com/repos/x/issues/1/c", ALL),
    ("paths = ['/v*/m']", "GET https://a.example.com/v1beta/m", ALL),
    ("paths = ['/v*/m']", "GET https://a.example.com/v1/x/m", NONE),
    // What has one meaning has one form.
    ("paths = ['/a/b']", "GET https://a.example.com/%61/b", ALL),
    ("paths = ['/a/b']", "GET https://a.example.com/a/%62", ALL),
    ("paths = ['/a/b']", "GET https://a.example.com/%61%2f%62", BAD),
    ("paths = ['/~a']", "GET https://a.example.com/%7Ea", ALL),
    ("paths = ['/~a']", "GET https://a.example.com/%7ea", ALL),
    ("paths = ['/%7Ea']", "GET https://a.example.com/~a", ALL),
    ("paths = ['/a b']", "GET https://a.example.com/a%20b", ALL),
    ("paths = ['/é']", "GET https://a.example.com/%c3%a9", ALL),
    ("paths = ['/é']", "GET https://a.example.com/%C3%A9", ALL),
    ("paths = ['/a']", "GET https://a.example.com/./a", ALL),
    ("paths = ['/a']", "GET https://a.example.com/b/../a", ALL),
    ("paths = ['/a']", "GET https://a.example.com/../../a", ALL),
    ("paths = ['/a']", "GET https://a.example.com/%2e%2E/a", ALL),
    ("paths = ['/a']", "GET https://a.example.com/b/%2e./a", ALL),
    ("paths = ['/a/*']", "GET https://a.example.com/a/../b", NONE),
    ("paths = ['/b']", "GET https://a.example.com/a/../b", ALL),
    // What upstreams read in different ways is all of it.
    ("paths = ['/a']", "GET https://a.example.com/a/", SOME),
    ("paths = ['/a']", "GET https://a.example.com//a", SOME),
    ("paths = ['/a/b']", "GET https://a.example.com/a//b", SOME),
    ("paths = ['/a/*']", "GET https://a.example.com/a//b", ALL),
    ("paths = ['/admin/*']", "GET https://a.example.com//admin/x", SOME),
    ("paths = ['/admin/*']", "GET https://a.example.com/admin;x/y", SOME),
    ("paths = ['/admin/*']", "GET https://a.example.com/;/admin", SOME),
    ("paths = ['/admin/*']", "GET https://a.example.com/public/..;/admin", SOME),
    ("paths = ['/public/*']", "GET https://a.example.com/public/..;/admin", SOME),
    ("paths = ['/a:b']", "GET https://a.example.com/a%3Ab", SOME),
    ("paths = ['/a%3Ab']", "GET https://a.example.com/a%3ab", SOME),
    ("paths = ['/a:b']", "GET https://a.example.com/a:b", ALL),
    ("paths = ['/a:*', '/a%3A*']", "GET https://a.example.com/a%3Ab", ALL),
    ("paths = ['/a%40b']", "GET https://a.example.com/a@b", SOME),
    ("paths = ['/@scope/*']", "GET https://a.example.com/%40scope/x", SOME),
    ("paths = ['/a%25b']", "GET https://a.example.com/a%25b", ALL),
    ("paths = ['/a/*']", "GET https://a.example.com/b;/../a", ALL),
    ("paths = ['/b']", "GET https://a.example.com/a%3b/../b", ALL),
    // What has no meaning is refused.
    ("", "GET https://a.example.com/a%2Fb", BAD),
    ("", "GET https://a.example.com/a%5Cb", BAD),
    ("", "GET https://a.example.com/..%5cb", BAD),
    ("", "GET https://a.example.com/a%00", BAD),
    ("", "GET https://a.example.com/a%", BAD),
    ("", "GET https://a.example.com/a%4", BAD),
    ("", "GET https://a.example.com/a%u0041", BAD),
    ("", "GET https://a.example.com/a%+1", BAD),
    ("", "GET https://a.example.com/%2e%2e%2fa", BAD),
    ("", "OPTIONS https://a.example.com*", BAD),
];

#[test]
fn a_rule_is_about_the_requests_that_its_conditions_say() {
    let rows: Vec<_> = HOSTS.iter().chain(BESIDE_PATHS).chain(PATHS).collect();
    assert!(rows.len() >= 150, "{}", rows.len());
    let wrong: Vec<_> = rows
        .into_iter()
        .map(|(conditions, line, expected)| (conditions, line, expected, stands(conditions, line)))
        .filter(|(_, _, expected, found)| *expected != found)
        .collect();
    assert!(wrong.is_empty(), "conditions, request, expected, found: {wrong:#?}");
}

fn stands(conditions: &str, line: &str) -> String {
    let head = match arrived(line) {
        Ok(head) => head,
        Err(status) => return status,
    };
    let rule = |action: &str| format!("[[rule]]\nname = 'r'\naction = '{action}'\n{conditions}\n");
    let child = agent("child");
    let allowed = decide(&policy(&(agents("deny") + &rule("allow"))), &child, &head, NOW);
    let blocked = decide(&policy(&(agents("allow") + &rule("block"))), &child, &head, NOW);
    let counted = rule("rate_limit") + "limit = 1\nwindow = 'day'\n";
    let counted = decide(&policy(&(agents("allow") + &counted)), &child, &head, NOW);
    match (said(allowed).as_str(), said(blocked).as_str(), said(counted).as_str()) {
        ("allow r", "block r", "metered r by-default") => ALL.to_owned(),
        ("deny", "block r", "metered r by-default") => SOME.to_owned(),
        ("deny", "allow by-default", "allow by-default") => NONE.to_owned(),
        contradiction => format!("{contradiction:?}"),
    }
}

fn agents(default: &str) -> String {
    let lineage = [
        ("grandparent", ""),
        ("parent", "parent = 'grandparent'\n"),
        ("child", "parent = 'parent'\n"),
        ("grandchild", "parent = 'child'\n"),
        ("other", ""),
    ];
    let entry =
        |(name, parent)| format!("[[agent]]\nname = '{name}'\ndefault = '{default}'\n{parent}");
    lineage.map(entry).concat()
}

/// The request of a client that connected to the host of its URL, as the gateway takes it, or the status of its refusal.
pub(super) fn arrived(line: &str) -> Result<RequestHead, String> {
    let (method, url) = line.split_once(' ').unwrap();
    let (scheme, rest) = url.split_once("://").unwrap();
    let (authority, target) = rest.split_at(rest.find(['/', '?', '*']).unwrap_or(rest.len()));
    let bad = || BAD.to_owned();
    let head = head(method, authority, target).ok_or_else(bad)?;
    let behind = authority.rfind(']').unwrap_or(0);
    let colon = authority[behind..].rfind(':').map_or(authority.len(), |colon| behind + colon);
    let scheme = if scheme == "http" { Scheme::Http } else { Scheme::Https };
    // Where it cannot have connected, the connection was made to something else: what it says is refused before.
    let host =
        Host::parse(&authority[..colon]).unwrap_or_else(|_| Host::parse("x.example").unwrap());
    let port = authority.get(colon + 1..).and_then(|port| port.parse().ok());
    let server_name = match &host {
        Host::Name(name) => Some(name.clone()),
        Host::Ip(_) => None,
    };
    let transport = match scheme {
        Scheme::Http => Transport::Plain,
        Scheme::Https => Transport::Tls { server_name },
    };
    let port = port.unwrap_or_else(|| scheme.default_port());
    match examine(&Arrival { host, port, in_tunnel: false, transport }, &head) {
        Ok(Asked::Forward(head)) => Ok(head),
        Ok(Asked::Tunnel { .. }) => Err("tunnel".to_owned()),
        Err(refusal) => Err(refusal.status().as_str().to_owned()),
    }
}

/// None where the HTTP parser refuses it.
fn head(method: &str, host: &str, target: &str) -> Option<Parts> {
    let target = if target.is_empty() { "/" } else { target };
    let request = Request::builder().version(Version::HTTP_11).method(method).uri(target);
    Some(request.header("host", host.as_bytes()).body(()).ok()?.into_parts().0)
}
