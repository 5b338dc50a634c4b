//! What upstreams do wrong, and how the agent learns it.

use crate::client::{Reply, curl};
use crate::common::origin::{Identity, Manner};
use crate::common::world::{FORBIDDEN_V4, World};

const OPEN: &str = "[[agent]]\nname = \"worker\"\ndefault = \"allow\"\n";

#[track_caller]
fn assert_error(world: &World, reply: &Reply, status: u16, error: &str, host: &str) {
    assert_eq!((reply.status, reply.error().as_str()), (status, error), "{reply:#?}");
    assert_eq!(reply.json()["host"], host);
    let record = &world.new_requests(1)[0];
    assert_eq!((&record["reason"], &record["decision"]), (&error.into(), &"block".into()));
    assert_eq!((&record["host"], &record["status"]), (&host.into(), &status.into()));
}

#[test]
fn an_upstream_without_an_address_is_502_unresolvable() {
    let Some(world) = World::new() else { return };
    world.configure(OPEN);
    // The workload's own resolver says that the name does not exist, as any other would.
    let ended = world.run("worker", &["curl", "-sS", "https://nowhere.test/"]);
    assert_eq!(ended.code, Some(6), "{ended:#?}");
    // A client that has an address from elsewhere is told by the gateway.
    let resolve = format!("nowhere.test:443:{FORBIDDEN_V4}");
    let reply = curl(&world, "worker", &["--resolve", &resolve, "https://nowhere.test/"]);
    assert_error(&world, &reply, 502, "upstream_unresolvable", "nowhere.test");
    assert_eq!(world.arrived_at(FORBIDDEN_V4), 0);
}

#[test]
fn an_upstream_that_does_not_listen_is_502_unreachable() {
    let Some(world) = World::new() else { return };
    world.configure(OPEN);
    world.names.set("closed.test", &[FORBIDDEN_V4.parse().unwrap()]);
    let reply = curl(&world, "worker", &["https://closed.test/"]);
    assert_error(&world, &reply, 502, "upstream_unreachable", "closed.test");
    // Nobody answers for this address at all.
    world.names.set("absent.test", &["203.0.113.200".parse().unwrap()]);
    let reply = curl(&world, "worker", &["http://absent.test/"]);
    assert_error(&world, &reply, 502, "upstream_unreachable", "absent.test");
}

#[test]
fn an_upstream_whose_certificate_proves_nothing_is_502_untrusted_and_gets_no_request() {
    let Some(world) = World::new() else { return };
    let rows = [
        ("self-signed.test", Identity::SelfSigned),
        ("other-name.test", Identity::OtherName),
        ("expired.test", Identity::Expired),
    ];
    let secret = world.secret("token", "never-to-be-seen");
    let hosts = rows.map(|(name, _)| format!("\"{name}\"")).join(", ");
    world.configure(&format!(
        "{OPEN}[[credential]]\nname = \"token\"\nsource = {{ file = \"{secret}\" }}\n\
         hosts = [{hosts}, \"good.test\"]\nagents = [\"worker\"]\n\
         inject = {{ header = \"Authorization\", format = \"{{value}}\" }}\n"
    ));
    for (name, identity) in rows {
        let origin = world.origin_that(name, identity, Manner::Http);
        let url = format!("https://{name}/");
        // What the client itself is ready to accept makes no difference.
        let reply = curl(&world, "worker", &["--insecure", &url]);
        assert_error(&world, &reply, 502, "upstream_untrusted", name);
        assert_eq!(origin.seen().len(), 0, "{name} got a request");
        assert!(origin.connections() > 0, "{name} was dialled");
    }
    // The control: the right certificate.
    let good = world.origin("good.test");
    assert_eq!(curl(&world, "worker", &["https://good.test/"]).status, 200);
    assert_eq!(good.authorizations(), [Some("never-to-be-seen".to_owned())]);
}

#[test]
fn a_malformed_response_is_502_invalid() {
    let Some(world) = World::new() else { return };
    world.configure(OPEN);
    let rows: [(&str, &'static [u8]); 4] = [
        ("garbage.test", b"this is no HTTP\r\n\r\n"),
        ("silent-end.test", b""),
        (
            "two-lengths.test",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        ),
        ("half-head.test", b"HTTP/1.1 200 OK\r\nContent-"),
    ];
    for (name, bytes) in rows {
        world.origin_that(name, Identity::Trusted, Manner::Says(bytes));
        let reply = curl(&world, "worker", &[&format!("https://{name}/")]);
        assert_error(&world, &reply, 502, "upstream_invalid", name);
    }
    let well: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
    world.origin_that("well.test", Identity::Trusted, Manner::Says(well));
    let reply = curl(&world, "worker", &["https://well.test/"]);
    assert_eq!((reply.status, reply.body.as_str()), (200, "abc"));
}

#[test]
fn a_response_that_breaks_off_breaks_off_for_the_agent_too() {
    let Some(world) = World::new() else { return };
    world.configure(OPEN);
    for version in ["--http1.1", "--http2"] {
        let name = format!("breaking{version}.test").replace("--", "-").replace("1.1", "1");
        let origin = world.origin(&name);
        let url = format!("https://{name}/cut");
        let mut running = world.start("worker", &["curl", "-sS", "-N", version, &url]);
        running.wait_until_printed("0123456789");
        origin.release();
        let ended = running.wait();
        assert_ne!(ended.code, Some(0), "the client notices: {ended:#?}");
        let record = &world.new_requests(1)[0];
        let expected = (&200.into(), &"upstream_invalid".into());
        assert_eq!((&record["status"], &record["reason"]), expected, "{record}");
    }
}
