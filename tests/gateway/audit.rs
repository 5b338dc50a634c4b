//! One record per request, with what the operator needs and nothing that must not be in it.

use std::collections::BTreeSet;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::common::wait_until;
use crate::common::world::World;

const RULES: &str = r#"
[[agent]]
name = "worker"
[[rule]]
name = "read"
hosts = ["mail.test"]
methods = ["GET", "POST"]
action = "allow"
"#;

#[test]
fn each_request_of_a_shared_connection_has_exactly_one_record() {
    let Some(world) = World::new() else { return };
    let mail = world.origin("mail.test");
    world.configure(RULES);
    let urls: Vec<String> = (0..8).map(|number| format!("https://mail.test/{number}")).collect();
    for option in ["--http1.1", "--http2"] {
        let mut command = vec!["curl", "-sS", option, "--parallel", "--parallel-max", "4"];
        for url in &urls {
            command.extend(["-o", "/dev/null", url]);
        }
        world.run("worker", &command).ok();
        let records = world.new_requests(urls.len());
        let paths: BTreeSet<&str> = records.iter().map(|r| r["path"].as_str().unwrap()).collect();
        assert_eq!(paths.len(), urls.len(), "{option}: {records:#?}");
    }
    assert_eq!(mail.seen().len(), 16);
    let all = world.audit();
    let ids: BTreeSet<&str> = all.iter().map(|record| record["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), all.len(), "ids are unique, across runs too");
    assert_eq!(world.audit_of("connection").len(), 0);
}

#[test]
fn a_record_says_who_asked_for_what_and_what_became_of_it() {
    let Some(world) = World::new() else { return };
    let mail = world.origin("mail.test");
    world.configure(RULES);
    let body = ["-d", "twelve bytes", "https://mail.test/count?secret=in-the-query"];
    let curl: Vec<&str> = ["curl", "-sS"].into_iter().chain(body).collect();
    assert_eq!(world.run("worker", &curl).ok(), "12 bytes\n");
    let record = &world.new_requests(1)[0];
    let expected = [
        ("kind", Value::from("request")),
        ("agent", "worker".into()),
        ("scheme", "https".into()),
        ("method", "POST".into()),
        ("host", "mail.test".into()),
        ("port", 443.into()),
        ("path", "/count".into()),
        ("status", 200.into()),
        ("decision", "allow".into()),
        ("reason", "allowed_by_rule".into()),
        ("rule", "read".into()),
        ("upstream", format!("{}:443", mail.v4).into()),
        ("bytes_up", 12.into()),
        ("bytes_down", 9.into()),
    ];
    for (field, value) in expected {
        assert_eq!(record[field], value, "{field} of {record:#?}");
    }
    assert!(record["workload"].as_str().unwrap().starts_with("run-"), "{record}");
    assert_eq!(record["process"]["comm"], "curl");
    assert!(record["process"]["pid"].as_u64().unwrap() > 0);
    let times = ["ms_total", "ms_gateway"].map(|field| record[field].as_f64().unwrap());
    assert!(times[1] > 0.0 && times[0] >= times[1] && times[0] < 60_000.0, "{times:?}");
    let timestamp = record["ts"].as_str().unwrap();
    assert!(timestamp.ends_with('Z') && timestamp.as_bytes()[10] == b'T', "{timestamp}");
    let known: BTreeSet<&str> = [
        "ts",
        "kind",
        "id",
        "agent",
        "workload",
        "process",
        "scheme",
        "method",
        "host",
        "port",
        "path",
        "status",
        "decision",
        "reason",
        "detail",
        "rule",
        "credential",
        "upstream",
        "bytes_up",
        "bytes_down",
        "ms_total",
        "ms_gateway",
    ]
    .into();
    let fields: BTreeSet<&str> = record.as_object().unwrap().keys().map(String::as_str).collect();
    assert!(fields.is_subset(&known), "{record}");
}

#[test]
fn a_request_that_the_agent_gives_up_has_its_record_too() {
    let Some(world) = World::new() else { return };
    let mail = world.origin("mail.test");
    world.configure(RULES);
    for (number, option) in ["--http1.1", "--http2"].into_iter().enumerate() {
        let running = world.start("worker", &["curl", "-s", option, "https://mail.test/silent"]);
        wait_until("the request is on its way", || mail.seen().len() == number + 1);
        kill(running.pid(), Signal::SIGTERM).unwrap();
        let ended = running.wait();
        assert_eq!(ended.signal, Some(Signal::SIGTERM as i32), "{ended:#?}");
        let record = &world.new_requests(1)[0];
        assert_eq!(record["reason"], "client_closed", "{option}: {record}");
        assert_eq!((&record["decision"], &record["path"]), (&"block".into(), &"/silent".into()));
    }
}
