//! What root is told of the daemon's workloads, and who is told nothing.

use std::os::unix::fs::PermissionsExt as _;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::land::{Land, SERVED, id_of};
use crate::tollgate::{Finished, TOLLGATE, finish, wait_for};

fn ask(land: &Land, words: &[&str]) -> Finished {
    finish(&mut land.host.plain([TOLLGATE].iter().chain(words)))
}

/// What `tollgate status --json` says of one cgroup.
fn status_of(land: &Land, id: u64) -> Option<Value> {
    let said = ask(land, &["status", "--json"]);
    let report: Value = serde_json::from_str(&said.stdout).ok()?;
    let workloads = report["workloads"].as_array().unwrap();
    workloads.iter().find(|workload| workload["cgroup_id"] == id).cloned()
}

#[test]
fn status_tells_of_every_workload_what_is_open_to_it_and_what_it_has_done() {
    let Some(land) = Land::new() else { return };
    let nobody = ask(&land, &["status"]);
    assert_eq!(nobody.status.code(), Some(2), "{nobody:?}");
    assert!(nobody.stderr.contains("is it running"), "{nobody:?}");
    let (good, bad, empty) = (land.cgroup("good"), land.cgroup("bad"), land.cgroup("empty"));
    let agent = land.agent(&good);
    land.give_device(&agent);
    let _wrong = land.agent_in_host_network(&bad);
    let _daemon = land.daemon();
    land.served(&agent);
    let status = |cgroup| status_of(&land, id_of(cgroup));
    let before =
        wait_for("the wire is fenced", || status(&good).filter(|it| it["network"]["fenced"] == 1));
    assert_eq!(before["agent"], "tester");
    assert_eq!((&before["state"], &before["why"]), (&"served".into(), &Value::Null));
    assert_eq!(before["way_in"], "cgroup");
    assert_eq!(before["trust"]["state"], "unknown", "{before}");
    assert!(before["cgroup"].as_str().unwrap().ends_with("/good"), "{before}");
    let mut held = land.start_python(
        &agent,
        "s = socket.create_connection(('203.0.113.9', 80), 10)\nprint('open', flush=True)\nsys.stdin.readline()",
    );
    let open = wait_for("a connection is open", || {
        status(&good).filter(|it| it["connections"]["open"] == 1)
    });
    assert_eq!(land.fetch(&agent), SERVED);
    let number = |it: &Value, key: &str| it[key].as_u64().unwrap();
    let total = |it: &Value| it["connections"]["total"].as_u64().unwrap();
    assert_eq!(total(&open), total(&before) + 1);
    let after = wait_for("the refusal is counted", || {
        status(&good).filter(|it| number(it, "refusals") > number(&open, "refusals"))
    });
    assert_eq!(total(&after), total(&open) + 1, "{after}");
    drop(held.stdin());
    held.finish();
    wait_for("it is open no more", || status(&good).filter(|it| it["connections"]["open"] == 0));
    let why = wait_for("why the other is closed", || {
        let closed = status(&bad).filter(|it| it["state"] == "closed")?;
        closed["why"].as_str().filter(|why| why.contains("host's network")).map(str::to_owned)
    });
    let no_process = status(&empty).unwrap();
    assert_eq!(
        (&no_process["state"], &no_process["why"]),
        (&"closed".into(), &"no process is in it".into())
    );
    let table = ask(&land, &["status"]).success();
    assert!(table.contains("1 fenced") && table.contains(&why), "{table}");
    assert_eq!(table.matches("tester").count(), 3, "{table}");
}

/// Asks as `tollgate status` does, and prints the status of the answer.
const ASK: [&str; 9] = [
    "curl",
    "--silent",
    "--unix-socket",
    "/run/tollgate/daemon.sock",
    "--output",
    "/dev/null",
    "--write-out",
    "%{http_code} %{exitcode}",
    "http://tollgate/v1/status",
];
#[test]
fn who_is_not_root_is_told_nothing_even_where_the_file_lets_everybody_in() {
    let Some(land) = Land::new() else { return };
    let daemon = land.daemon();
    wait_for("the daemon answers", || ask(&land, &["status"]).status.success().then_some(()));
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let ask_as = |before: &[&str]| finish(&mut land.host.plain(before.iter().chain(&ASK))).stdout;
    assert_eq!(ask_as(&nobody), "000 7", "the file's own mode does not let them in");
    for (path, mode) in [("/run/tollgate", 0o777), ("/run/tollgate/daemon.sock", 0o666)] {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(land.host.seen(path), mode).unwrap();
    }
    // Root of a user namespace is nobody here.
    let mut mapped = nobody.to_vec();
    mapped.extend(["unshare", "--user", "--map-root-user"]);
    for somebody in [&nobody[..], &mapped] {
        let told = ask_as(somebody);
        assert!(told.starts_with("000 "), "{told}");
    }
    assert_eq!(ask_as(&[]), "200 0", "the control: root is told");
    daemon.signal(Signal::SIGTERM);
    let said = daemon.finish().stderr;
    assert_eq!(
        said.matches("not root asked").count(),
        2,
        "both were let in, and sent away: {said}"
    );
}

#[test]
fn reload_says_every_mistake_and_changes_nothing_until_there_is_none() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let agent = land.agent(&cgroup);
    let _daemon = land.daemon();
    land.served(&agent);
    let glob = land.glob("*");
    let allowing = |rest: &str| {
        land.host.configure(&format!("match = {{ cgroup = \"{glob}\" }}\n{rest}"));
    };
    allowing(
        "colour = \"red\"\n[[rule]]\nname = \"r\"\nagents = [\"nobody\"]\naction = \"allow\"\n",
    );
    let refused = ask(&land, &["reload"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    for mistake in ["colour", "nobody", "tollgate.toml:"] {
        assert!(refused.stderr.contains(mistake), "{mistake}: {refused:?}");
    }
    assert_eq!(land.fetch(&agent), SERVED, "the old rules go on");
    allowing("[[rule]]\nname = \"r\"\naction = \"allow\"\n");
    let said = ask(&land, &["reload"]).success();
    assert!(said.starts_with("OK: "), "{said}");
    // Allowed now, and nobody is there.
    assert_ne!(land.fetch(&agent), SERVED);
}
