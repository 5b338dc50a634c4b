//! Containers that name their agent themselves.

use std::sync::Arc;

use crate::common::wait_until;
use crate::engine::{Container, Engine};
use crate::governed::{self, LABELLED, SECRET, UPSTREAM};
use crate::images;

/// A container with the machine's programs.
pub(crate) fn machine(engine: &Arc<Engine>, more: &[&str]) -> Container {
    let mounts = images::machine_mounts();
    let options: Vec<&str> =
        mounts.iter().map(String::as_str).chain(more.iter().copied()).collect();
    engine.run(&options, images::MACHINE, &["sleep", "1000"])
}

/// Where a container is that no `match` names by its cgroup.
const ELSEWHERE: &str = "--cgroup-parent=/elsewhere";

pub(crate) fn curl(container: &Container, url: &str) -> (Option<i32>, String) {
    let ended = container.exec(&["curl", "-sS", "--max-time", "20", url]);
    (ended.code, format!("{}{}", ended.stdout, ended.stderr))
}

#[test]
fn a_label_alone_makes_a_running_container_an_agent_whose_clients_trust_the_gateway() {
    let Some(engine) = governed::engine() else { return };
    let label = format!("--label=tollgate.agent={LABELLED}");
    let container = machine(&engine, &[ELSEWHERE, &label]);
    let url = format!("https://{UPSTREAM}/by-label");
    wait_until("the container reaches the upstream", || curl(&container, &url).0 == Some(0));
    let found = governed::of(&engine).authorizations("/by-label");
    assert!(
        !found.is_empty() && found.iter().all(|it| *it == format!("Bearer {SECRET}")),
        "{found:?}"
    );
    let (_, said) = curl(&container, "http://other.test/");
    assert!(said.contains("blocked_by_default_policy"), "{said}");
    let records = engine.world.audit_of("request");
    let own: Vec<_> = records.iter().filter(|record| record["path"] == "/by-label").collect();
    let shown = format!("{} ({})", container.name, &container.id[..12]);
    assert!(own.iter().all(|it| it["agent"] == LABELLED && it["workload"] == shown), "{own:?}");

    // The next life of the container has another cgroup, network and mounts.
    engine.restart(&container);
    wait_until("it does so again", || curl(&container, &url).0 == Some(0));
}

#[test]
fn a_container_whose_label_names_no_agent_is_governed_and_everything_is_denied_to_it() {
    let Some(engine) = governed::engine() else { return };
    let container = machine(&engine, &[ELSEWHERE, "--label=tollgate.agent=nobody-knows"]);
    let url = format!("http://{UPSTREAM}/by-nobody");
    wait_until("the gateway answers", || curl(&container, &url).1.contains("blocked_by"));
    assert!(governed::of(&engine).authorizations("/by-nobody").is_empty());
    let records = engine.world.audit_of("operator");
    let is_told = |detail: &str| detail.contains("names the agent `nobody-knows`");
    assert!(records.iter().any(|it| it["detail"].as_str().is_some_and(is_told)), "{records:?}");
}

#[test]
fn a_container_without_a_label_keeps_its_network() {
    let Some(engine) = governed::engine() else { return };
    let plain = machine(&engine, &[ELSEWHERE]);
    let label = format!("--label=tollgate.agent={LABELLED}");
    let labelled = machine(&engine, &[ELSEWHERE, &label]);
    // Both were there when the labelled one was governed, so the plain one was seen and left alone.
    let url = format!("https://{UPSTREAM}/beside");
    wait_until("the labelled one is governed", || curl(&labelled, &url).0 == Some(0));
    let listing = plain.exec(&["cat", "/proc/net/tcp"]);
    assert!(!listing.ok().contains("0100007F:280F"), "nobody listens in its network: {listing:?}");
    let listing = labelled.exec(&["cat", "/proc/net/tcp"]);
    assert!(listing.ok().contains("0100007F:280F"), "the control: {listing:?}");
    let made = plain.exec(&["curl", "-sS", "--max-time", "1", "http://203.0.113.250/"]);
    assert!(!made.stdout.contains("blocked_by"), "{made:?}");
}
