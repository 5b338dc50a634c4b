//! Clients that speak slowly, oddly, or garbage.

use serde_json::Value;

use crate::client::{fixture, python};
use crate::common::world::World;
use crate::common::{has_program, wait_for};

const OPEN: &str = "[[agent]]\nname = \"worker\"\ndefault = \"allow\"\n";

#[test]
fn a_client_hello_cut_at_every_byte_is_understood() {
    let Some(world) = World::new().filter(|_| has_program("python3")) else { return };
    let mail = world.origin("mail.test");
    world.configure(OPEN);
    let ended = world.run("worker", &[python(), &fixture("hellos.py"), "mail.test"]);
    let (word, count) = ended.ok().trim().split_once(' ').expect("one line");
    let count: usize = count.parse().unwrap();
    assert_eq!(word, "handshakes", "{ended:#?}");
    assert!(count > 200, "{ended:#?}");
    let asked = 1 + (count - 1) / 50;
    assert_eq!(mail.seen().len(), asked);
    world.new_requests(asked);
}

/// The records of connections, once there are `count` of them.
#[track_caller]
fn connections(world: &World, count: usize) -> Vec<Value> {
    wait_for("each connection has its record", || {
        let records = world.audit_of("connection");
        (records.len() >= count).then_some(records)
    })
}

#[test]
fn garbage_is_closed_with_one_record_each_while_others_go_on() {
    let Some(world) = World::new().filter(|_| has_program("python3")) else { return };
    let mail = world.origin("mail.test");
    world.configure(OPEN);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let rows = [
        (hex(b"\x00\x01\x02 this is no protocol\r\n"), "unknown_protocol"),
        (hex(b"SSH-2.0-OpenSSH_9.2\r\n"), "unknown_protocol"),
        (hex(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff"), "client_hello_invalid"),
        // The first record of a hello that never comes to its end.
        (hex(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") + ".", "client_closed"),
        // Nothing at all, and no end.
        (String::new(), "first_bytes_timeout"),
    ];
    let script = fixture("raw.py");
    let mut command = vec![python(), &script, "mail.test"];
    command.extend(rows.iter().map(|(bytes, _)| bytes.as_str()));
    let ended = world.run("worker", &command);
    let lines: Vec<&str> = ended.ok().lines().collect();
    assert_eq!(lines.len(), rows.len() + 1, "{ended:#?}");
    for line in &lines {
        assert!(line.ends_with(" 200"), "others go on: {ended:#?}");
        assert!(!line.contains(" open "), "it is closed: {ended:#?}");
    }
    let records = connections(&world, rows.len());
    let reasons: Vec<&str> =
        records.iter().map(|record| record["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, rows.each_ref().map(|(_, reason)| *reason), "{records:#?}");
    for record in &records {
        assert_eq!((&record["host"], &record["port"]), (&"mail.test".into(), &443.into()));
        assert_eq!(record["decision"], "block");
        assert!(record["process"]["pid"].is_u64(), "{record}");
    }
    assert_eq!(mail.seen().len(), rows.len() + 1);
    world.new_requests(rows.len() + 1);
}

#[test]
fn a_client_that_does_not_trust_the_ca_is_audited_as_such() {
    let Some(world) = World::new() else { return };
    let mail = world.origin("mail.test");
    world.configure(OPEN);
    let roots = world.path("roots.pem");
    let ended = world
        .run("worker", &["curl", "-s", "--cacert", roots.to_str().unwrap(), "https://mail.test/"]);
    assert_eq!(ended.code, Some(60), "{ended:#?}");
    let records = connections(&world, 1);
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(records[0]["reason"], "client_handshake_failed", "{records:#?}");
    assert_eq!(mail.connections(), 0);
}

#[test]
fn malformed_and_ambiguous_requests_are_refused_and_audited() {
    let Some(world) = World::new().filter(|_| has_program("python3")) else { return };
    let mail = world.origin("mail.test");
    world.configure(OPEN);
    let host = "Host: mail.test\\r\\n";
    let get = |target: &str| format!("b'GET {target} HTTP/1.1\\r\\n{host}\\r\\n'");
    // The script makes many letters of it.
    let long = "LONG";
    let rows = [
        (get("/a%zz"), 400),
        (get("/a%2Fb"), 400),
        (get("/a%5cb"), 400),
        (get("/a%00b"), 400),
        (get("/a#b"), 400),
        (format!("b'get / HTTP/1.1\\r\\n{host}\\r\\n'"), 400),
        (format!("b'TRACE / HTTP/1.1\\r\\n{host}\\r\\n'"), 405),
        (format!("b'OPTIONS * HTTP/1.1\\r\\n{host}\\r\\n'"), 400),
        (format!("b'CONNECT mail.test:443 HTTP/1.1\\r\\n{host}\\r\\n'"), 405),
        (
            format!(
                "b'POST / HTTP/1.1\\r\\n{host}Expect: magic\\r\\nContent-Length: 1\\r\\n\\r\\n'"
            ),
            417,
        ),
        (format!("b'GET / HTTP/1.1\\r\\n{host}{host}\\r\\n'"), 400),
        ("b'GET / HTTP/1.1\\r\\n\\r\\n'".to_owned(), 400),
        (format!("b'GET / HTTP/1.1\\r\\n{host}Odd Header: x\\r\\n\\r\\n'"), 400),
        (format!("b'GET / HTTP/1.2\\r\\n{host}\\r\\n'"), 505),
        (
            format!(
                "b'POST / HTTP/1.1\\r\\n{host}Content-Length: 3\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n'"
            ),
            400,
        ),
        (get(&format!("/{long}")), 414),
        (
            format!("b'GET / HTTP/1.1\\r\\n{host}X: {long}{long}{long}{long}{long}\\r\\n\\r\\n'"),
            431,
        ),
    ];
    let script = fixture("heads.py");
    let good = get("/a%41/./b?q=%zz");
    let mut command = vec![python(), &script, "mail.test"];
    command.extend(rows.iter().map(|(head, _)| head.as_str()));
    command.push(&good);
    let ended = world.run("worker", &command);
    let statuses: Vec<&str> = ended.ok().lines().collect();
    let expected: Vec<String> = rows.iter().map(|(_, status)| status.to_string()).collect();
    assert_eq!(statuses[..rows.len()], expected[..], "{}", ended.stderr);
    // The control: what is unusual and clear passes, normalised.
    assert_eq!(statuses[rows.len()..], ["200"]);
    let targets: Vec<String> = mail.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/aA/b?q=%zz"]);
    let records = world.new_requests(rows.len() + 1);
    for (record, (head, status)) in records.iter().zip(&rows) {
        let head: String = head.chars().take(60).collect();
        assert_eq!(
            (&record["status"], &record["reason"]),
            (&(*status).into(), &"bad_request".into()),
            "{head}"
        );
    }
}
