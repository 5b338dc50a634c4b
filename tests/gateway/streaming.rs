//! Bodies of any size and length of life, both ways, in little memory.

use std::fs;
use std::time::{Duration, Instant};

use crate::client::{fixture, python};
use crate::common::running::Running;
use crate::common::world::World;
use crate::common::{has_program, wait_for, wait_until};

const OPEN: &str = "[[agent]]\nname = \"worker\"\ndefault = \"allow\"\n";

const MIB: usize = 1024 * 1024;
/// What is moved: many times what may be on the way.
const BULK: usize = 96 * MIB;
/// What may be on the way: buffers of kernel, TLS and HTTP in client, gateway and server.
const ON_THE_WAY: usize = 24 * MIB;
/// How much Tollgate's memory may grow with what is moved.
const GROWTH: usize = 32 * MIB;

/// The most memory that a process has had so far.
fn peak_memory(running: &Running) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Waits for the end and returns the output, and the last that was seen of the peak.
fn finish(mut running: Running) -> (String, usize) {
    let mut peak = 0;
    wait_until("the transfer ends", || {
        peak = peak_memory(&running).unwrap_or(0).max(peak);
        running.has_ended()
    });
    (running.wait().ok().to_owned(), peak)
}

/// The value of `count` once it has not changed for a second.
fn settled(mut count: impl FnMut() -> usize) -> usize {
    let mut last = (count(), Instant::now());
    wait_for("it stops", || {
        let now = count();
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(now)
    })
}

#[test]
fn events_arrive_when_they_are_sent_not_when_the_answer_ends() {
    let Some(world) = World::new() else { return };
    world.configure(OPEN);
    for (version, name) in [("--http1.1", "one.test"), ("--http2", "two.test")] {
        let origin = world.origin(name);
        let url = format!("https://{name}/events");
        let mut curl = world.start("worker", &["curl", "-sS", "-N", version, &url]);
        curl.wait_until_printed("data: event 1\n\n");
        assert!(!curl.stdout().contains("event 2"));
        origin.release();
        assert_eq!(curl.wait().ok(), "data: event 1\n\ndata: event 2\n\n");
    }
    assert_eq!(world.new_requests(2)[1]["bytes_down"], 30);
}

#[test]
fn request_and_answer_stream_at_the_same_time() {
    let Some(world) = World::new().filter(|_| has_program("python3")) else { return };
    world.origin("mail.test");
    world.configure(OPEN);
    let ended = world.run("worker", &[python(), &fixture("duplex.py"), "mail.test"]);
    assert_eq!(ended.ok(), "lines 20\n");
    let record = &world.new_requests(1)[0];
    assert_eq!((&record["bytes_up"], &record["bytes_down"]), (&180.into(), &180.into()));
}

#[test]
fn an_upload_waits_for_the_upstream_and_not_in_tollgates_memory() {
    let Some(world) = World::new().filter(|_| has_program("python3")) else { return };
    let slow = world.origin("slow.test");
    world.configure(OPEN);
    let (script, bulk) = (fixture("bulk.py"), BULK.to_string());
    let mut running = world.start("worker", &[python(), &script, "up", "slow.test", &bulk]);
    wait_until("the upload is on its way", || !slow.seen().is_empty());
    let before = peak_memory(&running).expect("it runs");
    running.wait_until_printed("stuck ");
    let stuck = running.stdout();
    let taken: usize = stuck.trim().trim_start_matches("stuck ").parse().unwrap();
    assert!(taken < ON_THE_WAY, "{taken} bytes were taken while nobody read them");
    slow.release();
    let (output, peak) = finish(running);
    assert_eq!(output.lines().last(), Some(format!("{BULK} bytes").as_str()));
    assert!(peak < before + GROWTH, "from {} to {} MiB", before / MIB, peak / MIB);
    assert_eq!(slow.body_bytes(), BULK);
    assert_eq!(world.new_requests(1)[0]["bytes_up"], BULK);
}

#[test]
fn a_download_waits_for_the_agent_and_not_in_tollgates_memory() {
    let Some(world) = World::new().filter(|_| has_program("python3")) else { return };
    let big = world.origin("big.test");
    world.configure(OPEN);
    let go_on = world.path("go-on");
    let (script, bulk) = (fixture("bulk.py"), BULK.to_string());
    let command = [python(), &script, "down", "big.test", &bulk, go_on.to_str().unwrap()];
    let mut running = world.start("worker", &command);
    running.wait_until_printed("stuck");
    let before = peak_memory(&running).expect("it runs");
    let handed_out = settled(|| big.handed_out());
    assert!(handed_out < ON_THE_WAY, "{handed_out} bytes were taken while nobody read them");
    fs::write(&go_on, "").unwrap();
    let (output, peak) = finish(running);
    assert!(output.ends_with(" True\n"), "{output}");
    assert!(peak < before + GROWTH, "from {} to {} MiB", before / MIB, peak / MIB);
    assert_eq!(world.new_requests(1)[0]["bytes_down"], BULK);
}
