//! The name decides, and only what agrees with it.

use crate::client::curl;
use crate::common::origin::{Identity, Manner};
use crate::common::world::{FORBIDDEN_V4, FORBIDDEN_V6, PRIVATE, World};

const RULES: &str = r#"
[[agent]]
name = "worker"
[[rule]]
name = "mail"
hosts = ["mail.test", "inner.test", "rebound.test", "mixed.test"]
action = "allow"
"#;

#[test]
fn names_that_disagree_are_refused_and_reach_nobody() {
    let Some(world) = World::new() else { return };
    let (mail, chat) = (world.origin("mail.test"), world.origin("chat.test"));
    world.configure(RULES);
    let rows: [(&str, &[&str]); 5] = [
        ("another Host", &["-H", "Host: chat.test", "https://mail.test/"]),
        (
            "another Host over HTTP/1.1",
            &["--http1.1", "-H", "Host: chat.test", "https://mail.test/"],
        ),
        ("an allowed Host at a denied SNI", &["-H", "Host: mail.test", "https://chat.test/"]),
        (
            "the name of one, the address of another",
            &["--connect-to", "mail.test:443:chat.test:443", "https://mail.test/"],
        ),
        (
            "the same over plain HTTP",
            &["--connect-to", "mail.test:80:chat.test:80", "http://mail.test/"],
        ),
    ];
    for (what, arguments) in rows {
        let reply = curl(&world, "worker", arguments);
        assert_eq!((reply.status, reply.error().as_str()), (421, "destination_mismatch"), "{what}");
        assert_eq!(reply.header("x-should-retry"), Some("false"), "{what}");
        assert!(reply.json().get("sni").is_some() && reply.json().get("host").is_some(), "{what}");
        assert_eq!(world.new_requests(1)[0]["reason"], "destination_mismatch", "{what}");
    }
    assert_eq!(mail.connections() + chat.connections(), 0);
    // The control: what agrees after canonicalisation passes.
    for url in ["https://mail.test/", "https://MAIL.test/", "https://mail.test.:443/"] {
        assert_eq!(curl(&world, "worker", &[url]).status, 200, "{url}");
    }
}

#[test]
fn the_gateway_dials_by_its_own_resolution_and_never_the_agents_address() {
    let Some(world) = World::new() else { return };
    let mail = world.origin("mail.test");
    let liar = world.origin("liar.test");
    world.configure(RULES);
    for address in [liar.v4.to_string(), format!("[{}]", liar.v6)] {
        let resolve = format!("mail.test:443:{address}");
        let reply = curl(&world, "worker", &["--resolve", &resolve, "https://mail.test/"]);
        assert_eq!(reply.status, 200, "{reply:#?}");
    }
    assert_eq!((mail.seen().len(), liar.connections()), (2, 0));
}

#[test]
fn ipv4_and_ipv6_clients_reach_the_same_name() {
    let Some(world) = World::new() else { return };
    let mail = world.origin("mail.test");
    world.configure(RULES);
    for family in ["-4", "-6"] {
        for url in ["https://mail.test/", "http://mail.test/"] {
            assert_eq!(curl(&world, "worker", &[family, url]).status, 200, "{family} {url}");
        }
    }
    assert_eq!(mail.seen().len(), 4);
    // An upstream that has only an IPv6 address is reached by clients of both families.
    let sixth = world.origin("rebound.test");
    world.names.set("rebound.test", &[sixth.v6.into()]);
    for family in ["-4", "-6"] {
        assert_eq!(curl(&world, "worker", &[family, "https://rebound.test/"]).status, 200);
    }
    let upstream = format!("[{}]:443", sixth.v6);
    assert_eq!(world.new_requests(6)[5]["upstream"], upstream);
}

#[test]
fn a_private_address_is_refused_unless_a_rule_opens_it() {
    let Some(world) = World::new() else { return };
    for private in [PRIVATE, "127.0.0.1", "169.254.169.254", "::ffff:10.0.0.7", "fd00::7"] {
        world.names.set("inner.test", &[private.parse().unwrap()]);
        world.configure(RULES);
        let reply = curl(&world, "worker", &["https://inner.test/"]);
        assert_eq!((reply.status, reply.error().as_str()), (403, "blocked_address"), "{private}");
        assert_eq!(world.new_requests(1)[0]["reason"], "blocked_address", "{private}");
    }
    assert_eq!(world.arrived_at(PRIVATE), 0);
    // The control: opened by its rule, the same name is dialled.
    world.names.set("inner.test", &[PRIVATE.parse().unwrap()]);
    world.configure(&format!("{RULES}allow_private = true\n"));
    let reply = curl(&world, "worker", &["https://inner.test/"]);
    assert_eq!(reply.error(), "upstream_unreachable", "{reply:#?}");
    assert!(world.arrived_at(PRIVATE) > 0);
}

#[test]
fn of_several_addresses_the_private_ones_are_skipped() {
    let Some(world) = World::new() else { return };
    let mixed = world.origin_that("mixed.test", Identity::Trusted, Manner::Http);
    world.names.set("mixed.test", &[PRIVATE.parse().unwrap(), mixed.v4.into()]);
    world.configure(RULES);
    assert_eq!(curl(&world, "worker", &["https://mixed.test/"]).status, 200);
    assert_eq!(world.arrived_at(PRIVATE), 0);
}

#[test]
fn a_name_that_turns_private_between_two_requests_is_refused_then() {
    let Some(world) = World::new() else { return };
    let rebound = world.origin("rebound.test");
    world.configure(RULES);
    assert_eq!(curl(&world, "worker", &["https://rebound.test/"]).status, 200);
    world.names.set("rebound.test", &[PRIVATE.parse().unwrap()]);
    assert_eq!(curl(&world, "worker", &["https://rebound.test/"]).error(), "blocked_address");
    assert_eq!((rebound.seen().len(), world.arrived_at(PRIVATE)), (1, 0));
}

#[test]
fn an_address_as_host_is_matched_as_such() {
    let Some(world) = World::new() else { return };
    let site = world.origin("site.test");
    let (v4, v6) = (site.v4.to_string(), site.v6.to_string());
    let urls = [
        format!("https://{v4}/"),
        format!("https://[{v6}]/"),
        format!("http://{v4}/"),
        format!("http://[{v6}]/"),
    ];
    world.configure(RULES);
    for url in &urls {
        let reply = curl(&world, "worker", &["-g", url]);
        assert_eq!(reply.error(), "blocked_by_default_policy", "{url}");
    }
    assert_eq!(site.connections(), 0);
    world.configure(&format!(
        "{RULES}[[rule]]\nname = \"by address\"\nhosts = [\"{v4}\", \"{v6}\"]\naction = \"allow\"\n"
    ));
    for url in &urls {
        assert_eq!(curl(&world, "worker", &["-g", url]).status, 200, "{url}");
    }
    // A name at an address that has none does not pass for the address.
    let other = ["-H", "Host: mail.test", urls[0].as_str()];
    assert_eq!(curl(&world, "worker", &other).error(), "destination_mismatch");
    assert_eq!(site.seen().len(), 4);
}

#[test]
fn a_denied_address_gets_an_explanation_and_no_frame() {
    let Some(world) = World::new() else { return };
    world.configure(RULES);
    let connect = |address: &str| vec!["-g".to_owned(), format!("http://{address}:8080/")];
    for address in [FORBIDDEN_V4.to_owned(), format!("[{FORBIDDEN_V6}]")] {
        let arguments = connect(&address);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        assert_eq!(curl(&world, "worker", &arguments).status, 403);
    }
    assert_eq!(world.arrived_at(FORBIDDEN_V4) + world.arrived_at(FORBIDDEN_V6), 0);
    // The control: without Tollgate the same requests arrive.
    for address in [FORBIDDEN_V4.to_owned(), format!("[{FORBIDDEN_V6}]")] {
        let url = format!("http://{address}:8080/");
        let ended = world.start_ungoverned(&[], &["curl", "-g", "-s", &url]).wait();
        assert_eq!(ended.code, Some(7), "nobody listens there");
    }
    assert!(world.arrived_at(FORBIDDEN_V4) > 0 && world.arrived_at(FORBIDDEN_V6) > 0);
}
