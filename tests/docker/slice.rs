//! Containers in Tollgate's slice, and what a container has that is not.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use crate::common::running::Running;
use crate::common::world::FORBIDDEN_V4;
use crate::common::{PATIENCE, wait_for, wait_until};
use crate::engine::{Container, Engine};
use crate::governed::{self, LABELLED, UPSTREAM};
use crate::images;
use crate::labels::{curl, machine};

const IN_SLICE: &str = "--cgroup-parent=/tollgate.slice";
const ELSEWHERE: &str = "--cgroup-parent=/elsewhere";
/// Addresses of the internet that nobody else sends to.
const CONTROL: &str = "203.0.113.48";
const HELD: &str = "203.0.113.47";
const HELD_CONTROL: &str = "203.0.113.46";

/// How many containers are started, and how many at a time.
const STARTS: usize = 200;
const AT_A_TIME: usize = 8;

fn label() -> String {
    format!("--label=tollgate.agent={LABELLED}")
}

/// A container that is made and not started.
fn create(engine: &Engine, options: &[&str], address: &str) -> String {
    let name = engine.container_name();
    let mut arguments = vec!["create", "--log-driver=none", "--name", &name];
    arguments.extend(options);
    arguments.extend([images::FIRE, "volley", address, "4100"]);
    engine.docker(&arguments).ok();
    name
}

/// Starts containers again and again, each time as other lives with other cgroups and networks.
fn start_repeatedly(engine: &Engine, names: &[String], times: usize) -> Running {
    let names = names.join(" ");
    let script = format!(
        "i=0; while [ $i -lt {times} ]; do docker start {names} && docker wait {names} || exit 1; i=$((i+1)); done"
    );
    engine.start_command(&["sh", "-c", &script])
}

/// Waits for longer than for anything that happens once.
fn wait_long(mut running: Running) {
    let deadline = Instant::now() + PATIENCE * 8;
    while !running.has_ended() && Instant::now() < deadline {
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    running.wait().ok();
}

/// Waits until the gate of the slice is at work.
pub(crate) fn wait_for_gate(engine: &Engine) {
    let pins = engine.in_machine("/sys/fs/bpf/tollgate");
    wait_until("the slice is closed", || {
        let entries = fs::read_dir(&pins).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).any(|it| it.join("tollgate_slice_connect6").exists())
    });
}

/// The records of one reason about a container.
fn records_of(engine: &Engine, container: &Container, reason: &str) -> Vec<Value> {
    let is_about_it = |record: &Value| {
        record["reason"] == reason && record["container"]["id"] == container.id.as_str()
    };
    engine.world.audit_of("operator").into_iter().filter(is_about_it).collect()
}

#[test]
fn two_hundred_starts_in_the_slice_send_nothing_from_their_first_instruction_on() {
    let Some(engine) = governed::engine() else { return };
    engine.need(images::FIRE);
    wait_for_gate(&engine);
    // With the label they become an agent's at some moment, without it never.
    let (label, begun) = (label(), Instant::now());
    let options = |number: usize| {
        if number.is_multiple_of(2) { vec![IN_SLICE] } else { vec![IN_SLICE, &label] }
    };
    let names: Vec<String> =
        (0..AT_A_TIME).map(|number| create(&engine, &options(number), FORBIDDEN_V4)).collect();
    let start = |names| start_repeatedly(&engine, names, STARTS / AT_A_TIME);
    let starts: Vec<Running> = names.chunks(2).map(start).collect();
    starts.into_iter().for_each(wait_long);
    println!("{STARTS} starts: {:.0} s", begun.elapsed().as_secs_f64());
    assert_eq!(engine.world.arrived_at(FORBIDDEN_V4), 0, "{}", governed::of(&engine).said());
    // The control: the same image, started elsewhere, with the same daemon at work.
    let control = create(&engine, &[ELSEWHERE], CONTROL);
    wait_long(start_repeatedly(&engine, std::slice::from_ref(&control), 1));
    assert!(engine.world.arrived_at(CONTROL) > 20, "nothing would have arrived anyway");
    for name in names.iter().chain([&control]) {
        engine.docker(&["rm", "--force", name]).ok();
    }
}

#[test]
fn a_container_in_the_slice_is_served_as_soon_as_its_label_is_known_and_was_never_open() {
    let Some(engine) = governed::engine() else { return };
    wait_for_gate(&engine);
    let container = machine(&engine, &[IN_SLICE, &label()]);
    let url = format!("https://{UPSTREAM}/in-slice");
    wait_until("the container reaches the upstream", || curl(&container, &url).0 == Some(0));
    assert!(!governed::of(&engine).authorizations("/in-slice").is_empty());
    assert_eq!(records_of(&engine, &container, "workload_was_open"), Vec::<Value>::new());
}

#[test]
fn a_container_in_the_slice_that_is_no_agent_s_stays_closed_and_its_record_names_the_remedy() {
    let Some(engine) = governed::engine() else { return };
    wait_for_gate(&engine);
    let container = machine(&engine, &[IN_SLICE]);
    let (_, said) = curl(&container, "http://203.0.113.45/");
    assert!(said.contains("Couldn't connect"), "{said}");
    let records = wait_for("the record", || {
        let found = records_of(&engine, &container, "workload_refused");
        (!found.is_empty()).then_some(found)
    });
    let detail = records[0]["detail"].as_str().unwrap();
    assert!(detail.contains("is no agent's") && detail.contains("tollgate.agent=NAME"), "{detail}");
    let (_, said) = curl(&container, "http://203.0.113.45/");
    assert!(said.contains("Couldn't connect"), "{said}");
    assert_eq!(records_of(&engine, &container, "workload_refused").len(), 1, "said once");
    assert_eq!(engine.world.arrived_at("203.0.113.45"), 0);
}

/// Somebody in the internet who takes connections and keeps them.
fn listen(engine: &Engine, address: &'static str) {
    engine.world.in_internet(move || {
        let listener = TcpListener::bind((address, 4100)).unwrap();
        std::thread::spawn(move || listener.incoming().take(8).collect::<Vec<_>>());
    });
}

/// A container that holds a connection from its first instruction on.
fn hold(engine: &Arc<Engine>, options: &[&str], address: &'static str) -> Container {
    engine.run(options, images::FIRE, &["hold", address, "4100"])
}

fn printed(engine: &Engine, container: &Container) -> String {
    engine.docker(&["logs", &container.name]).stdout
}

#[test]
fn what_a_container_opens_before_its_label_is_known_is_cut_and_the_window_is_told() {
    let Some(engine) = governed::engine() else { return };
    engine.need(images::FIRE);
    listen(&engine, HELD_CONTROL);
    listen(&engine, HELD);
    let control = hold(&engine, &[ELSEWHERE], HELD_CONTROL);
    // A program that the machine lets wait until it is closed already has had no window to send in: another one may.
    let mut tries = 5;
    let (container, told, before, control_before) = loop {
        let earlier = engine.world.arrived_at(HELD);
        let container = hold(&engine, &[ELSEWHERE, &label()], HELD);
        let told = wait_for("both records", || {
            let found = records_of(&engine, &container, "workload_was_open");
            (found.len() == 2).then_some(found)
        });
        let (now, of_control) =
            (engine.world.arrived_at(HELD), engine.world.arrived_at(HELD_CONTROL));
        if now > earlier + 3 {
            break (container, told, now, of_control);
        }
        tries -= 1;
        assert!(tries > 0, "it had no connection: {}", printed(&engine, &container));
    };
    let window = told[0]["detail"].as_str().unwrap();
    println!("{window}; frames in it: {before}");
    assert!(window.contains("had the open net for at most"), "{window}");
    assert!(told[1]["detail"].as_str().unwrap().contains("were cut: "), "{told:?}");
    // The kernel has destroyed it; what it tries since then goes nowhere either.
    wait_until("it is told", || printed(&engine, &container).contains("cut: ECONNABORTED"));
    governed::of(&engine).wait_for(&container);
    let connections = fs::read_to_string(format!("/proc/{}/net/tcp", container.pid())).unwrap();
    assert!(!connections.contains("2F7100CB:1004"), "{connections}");
    wait_until("the control goes on sending", || {
        engine.world.arrived_at(HELD_CONTROL) > control_before + 100
    });
    assert_eq!(engine.world.arrived_at(HELD), before, "frames after it was closed");
    assert!(!printed(&engine, &control).contains("cut"));
    assert!(records_of(&engine, &control, "workload_was_open").is_empty());
}
