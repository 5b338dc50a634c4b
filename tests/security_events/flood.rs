//! A flood costs little, hides nothing, and is counted to the last attempt.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::probe::{Probe, records, refusals};
use crate::tollgate::Host;

#[test]
fn of_a_hundred_thousand_datagrams_every_one_is_recorded_or_counted_and_other_attempts_are_seen() {
    let Some(host) = Host::new("") else { return };
    let code = "
u = socket.socket(2, 2); refused = 0
for i in range(100000):
    try: u.sendto(b'x', ('203.0.113.9', 4433))
    except ConnectionRefusedError: refused += 1
    if i == 50000: tried(lambda: socket.socket(2, 3, 1))
print(refused)";
    let probe = Probe::governed(&host, code);
    probe.go();
    // In the middle of the flood, and not lost in it.
    let other = probe.records("socket_family", 1);
    assert_eq!(other.len(), 1);
    probe.is_named_in(&other[0]);
    assert_eq!(probe.finish(), "EPROTONOSUPPORT\n100000\n");
    assert_eq!(refusals(&host, "udp"), 100_000);
    let found = records(&host, "udp");
    // Twenty a second for as long as it took, and a summary every two seconds.
    assert!(found.len() < 20 * 60, "{}", found.len());
    let counted = found.iter().filter(|record| record["count"].is_u64());
    for record in counted {
        assert!(record["process"].is_null(), "{record}");
        let detail = record["detail"].as_str().unwrap();
        let expected = format!(
            "UDP to anywhere but DNS: {} more refusals not recorded one by one",
            record["count"]
        );
        assert_eq!(detail, expected);
    }
}

#[test]
fn a_flood_of_every_class_at_once_is_counted_to_the_last_attempt() {
    let Some(host) = Host::new("") else { return };
    let code = "
u = socket.socket(2, 2); counts = {}
def attempt(name, what):
    try: what()
    except OSError: counts[name] = counts.get(name, 0) + 1
end = time.monotonic() + 3
while time.monotonic() < end:
    attempt('udp', lambda: u.sendto(b'x', ('203.0.113.9', 4433)))
    attempt('socket_family', lambda: socket.socket(2, 3, 1))
    attempt('gateway_port_connect', lambda: socket.create_connection(('127.0.0.1', 10255), 5))
    attempt('gateway_port_bind', lambda: socket.socket().bind(('127.0.0.2', 10255)))
    attempt('device_bound', lambda: bound.connect(('203.0.113.9', 80)))
for name in sorted(counts): print(name, counts[name])";
    let code = format!(
        "bound = socket.socket(); bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'out0')\n{code}"
    );
    let probe = Probe::governed(&host, &code).give_device();
    probe.go();
    let said = probe.finish();
    assert_eq!(said.lines().count(), 5, "{said}");
    for line in said.lines() {
        let (class, count) = line.split_once(' ').unwrap();
        assert_eq!(refusals(&host, class), count.parse::<u64>().unwrap(), "{said}");
        let alone = records(&host, class).iter().filter(|r| r["count"].is_null()).count();
        assert!(alone > 0, "{class} is recorded one by one at first");
    }
}

#[test]
fn what_finds_the_buffer_full_is_counted_too() {
    let Some(host) = Host::new("") else { return };
    // Nobody reads while the gateway stands still: five classes fill the buffer in some seconds.
    let code = "
u = socket.socket(2, 2); bound = socket.socket(); counts = {}
bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'out0')
def attempt(name, what):
    try: what()
    except OSError: counts[name] = counts.get(name, 0) + 1
end = time.monotonic() + 11
while time.monotonic() < end:
    attempt('udp', lambda: u.sendto(b'x', ('203.0.113.9', 4433)))
    attempt('socket_family', lambda: socket.socket(2, 3, 1))
    attempt('gateway_port_connect', lambda: socket.create_connection(('127.0.0.1', 10255), 5))
    attempt('gateway_port_bind', lambda: socket.socket().bind(('127.0.0.2', 10255)))
    attempt('device_bound', lambda: bound.connect(('203.0.113.9', 80)))
    time.sleep(0.02)
for name in sorted(counts): print(name, counts[name])";
    let probe = Probe::governed(&host, code).give_device();
    let tollgate = Pid::from_raw(i32::try_from(probe.parent()).unwrap());
    kill(tollgate, Signal::SIGSTOP).unwrap();
    probe.go();
    kill(tollgate, Signal::SIGCONT).unwrap();
    let said = probe.finish();
    for line in said.lines() {
        let (class, count) = line.split_once(' ').unwrap();
        assert_eq!(refusals(&host, class), count.parse::<u64>().unwrap(), "{said}");
    }
    let is_lost = |record: &serde_json::Value| {
        record["detail"].as_str().unwrap().contains("because the kernel's buffer was full")
    };
    assert!(host.records_of("kernel_refused").iter().any(is_lost), "{:#?}", host.records().last());
}

#[test]
fn a_workload_that_floods_takes_no_event_from_another() {
    let Some(flooding) = Host::new("") else { return };
    let Some(other) = Host::new("") else { return };
    let flood = "
mark('done'); u = socket.socket(2, 2)
while not os.path.exists('end'):
    for i in range(1000):
        try: u.sendto(b'x', ('203.0.113.9', 4433))
        except ConnectionRefusedError: pass";
    let flood = Probe::governed(&flooding, flood);
    flood.go();
    let quiet = Probe::governed(
        &other,
        "u = socket.socket(2, 2); tried(lambda: u.sendto(b'x', ('203.0.113.9', 4433)))",
    );
    quiet.go();
    let found = quiet.records("udp", 1);
    quiet.is_named_in(&found[0]);
    assert_eq!(quiet.finish(), "ECONNREFUSED\n");
    assert_eq!(refusals(&other, "udp"), 1);
    flood.finish();
    assert!(refusals(&flooding, "udp") > 1000);
}
