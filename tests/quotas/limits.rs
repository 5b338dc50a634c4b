//! Each limit with a workload that reaches it, the refusal and its record, the other workload, and what comes after.

use nix::sys::signal::{Signal, kill};

use crate::common::wait_until;
use crate::pair::Pair;

/// The quota of one workload besides its connections.
const HELD_KIB: usize = 384 * 1024;

#[test]
fn a_connection_too_many_is_reset_and_audited_and_another_workload_connects() {
    let Some(mut pair) = Pair::new(
        r#"
kept, resets = [], 0
while resets < 20:
    try:
        s = opened(); s.sendall(request("/denied")); assert answer(s)[0] == 403; kept.append(s)
    except ConnectionResetError: resets += 1
say("kept", len(kept), ".")
wait("go")
for s in kept[:10]: s.close()
until_governed(); say("recovered")
wait("end")
"#,
    ) else {
        return;
    };
    pair.flood_says("kept");
    pair.flood_says("kept 1024 .");
    pair.calm_is_served_at_once();
    let refused = pair.records("flood", "quota_exceeded");
    assert_eq!(refused.len(), 20, "{refused:#?}");
    assert_eq!(refused[0]["kind"], "connection");
    let detail = refused[0]["detail"].as_str().unwrap();
    assert!(detail.contains("1024 connections at once"), "{detail}");
    assert_eq!(refused[0]["process"]["comm"], "python3");
    pair.mark("go");
    pair.flood_says("recovered");
    assert!(pair.records("calm", "quota_exceeded").is_empty());
}

#[test]
fn requests_that_would_hold_too_much_are_told_so_and_another_workload_is_served() {
    let Some(mut pair) = Pair::new(
        r#"
waiting = {}
for _ in range(600):
    s = opened(); s.sendall(request("/silent")); waiting[s.fileno()] = s
poll, refused, quiet = select.poll(), 0, time.monotonic()
for number in waiting: poll.register(number, select.POLLIN)
while time.monotonic() - quiet < 3:
    for number, _ in poll.poll(100):
        status, body = answer(waiting.pop(number)); poll.unregister(number)
        told = json.loads(body)
        assert (status, told["error"], told["quota"]) == (429, "quota_exceeded", "held_kib"), (status, told)
        refused += 1; quiet = time.monotonic()
say("refused", refused)
wait("go")
for s in waiting.values(): assert answer(s)[0] == 200
say("served", len(waiting))
assert get()[0] == 200
say("recovered")
wait("end")
"#,
    ) else {
        return;
    };
    pair.flood_says("refused");
    pair.calm_is_served_at_once();
    let refused = pair.records("flood", "quota_exceeded");
    // A request and its connection to the upstream are reckoned at 896 KiB.
    assert!(refused.len() >= 600 - HELD_KIB / 896, "{} refused", refused.len());
    assert!(refused.len() < 300, "{} refused", refused.len());
    assert_eq!((&refused[0]["kind"], &refused[0]["status"]), (&"request".into(), &429.into()));
    pair.origin.release();
    pair.mark("go");
    pair.flood_says(&format!("served {}", 600 - refused.len()));
    pair.flood_says("recovered");
    assert!(pair.records("calm", "quota_exceeded").is_empty());
}

#[test]
fn a_workload_that_walks_through_names_gets_no_more_certificates_and_another_one_does() {
    let Some(mut pair) = Pair::new(
        r#"
made, refused = 0, 0
while refused < 20:
    try:
        with shaken("n%d.test" % (made + refused)): made += 1
    except ssl.SSLError as error:
        assert error.reason == "TLSV1_ALERT_ACCESS_DENIED", error
        refused += 1
say("made", made)
wait("go")
while True:
    try:
        shaken("later.test"); break
    except ssl.SSLError: time.sleep(0.05)
say("recovered")
wait("end")
"#,
    ) else {
        return;
    };
    pair.flood_says("made");
    pair.calm_is_served_at_once();
    let refused = pair.records("flood", "quota_exceeded");
    assert!(refused.len() >= 20, "{refused:#?}");
    assert_eq!(refused[0]["kind"], "connection");
    let detail = refused[0]["detail"].as_str().unwrap();
    assert!(detail.contains("256 new certificates"), "{detail}");
    pair.mark("go");
    pair.flood_says("recovered");
}

#[test]
fn a_flood_of_refused_requests_is_counted_and_does_not_fill_the_log() {
    const ASKED: usize = 12_000;
    let Some(mut pair) = Pair::new(&format!(
        r#"
s, begun = opened(), time.monotonic()
left = {ASKED}
while left:
    s.sendall(request("/denied") * 100); left -= 100
    for _ in range(100):
        data = b""
        while not data.endswith(b"}}"): data += s.recv(1)
say("refused in", time.monotonic() - begun)
"#
    )) else {
        return;
    };
    for _ in 0..20 {
        pair.calm_is_served_at_once();
    }
    let ended = pair.flood_ends();
    let seconds: f64 = ended.stdout.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let refused = || pair.records("flood", "blocked_by_default_policy");
    let counted = |records: &[serde_json::Value]| -> usize {
        let words = |record: &serde_json::Value| {
            let detail = record["detail"]
                .as_str()?
                .strip_suffix(" earlier refusals not recorded one by one)")
                .or_else(|| {
                    record["detail"]
                        .as_str()?
                        .strip_suffix(" earlier refusals not recorded one by one")
                })?;
            detail.rsplit(['(', ' ']).next()?.parse::<usize>().ok()
        };
        records.iter().filter_map(words).sum()
    };
    // The last count is written within a second.
    wait_until("every refusal is recorded or counted", || {
        let records = refused();
        records.len() + counted(&records) >= ASKED
    });
    let records = refused();
    let most = 4096.0 + 100.0 * (seconds + 2.0);
    assert!((records.len() as f64) < most, "{} records in {seconds} s", records.len());
    // How many depends on how fast this machine asks.
    assert!(counted(&records) > 0);
    let calm = pair.records("calm", "allowed_by_rule").len();
    assert!(calm >= 21, "what goes on has its record each: {calm}");
}

#[test]
fn a_full_table_of_connections_is_full_for_its_own_workload_only() {
    let Some(mut pair) = Pair::with_rate(
        r#"
say("stop"); wait("stopped")
kept = []
for _ in range(18000):
    s = socket.socket(); s.setblocking(False)
    s.connect_ex((ADDRESS, 80)); kept.append(s)
say("full"); wait("go")
for s in kept: s.close()
until_governed(); say("recovered")
wait("end")
"#,
        1_000_000,
    ) else {
        return;
    };
    pair.flood_says("stop");
    let daemon = pair.daemon.pid();
    kill(daemon, Signal::SIGSTOP).unwrap();
    pair.mark("stopped");
    pair.flood_says("full");
    kill(daemon, Signal::SIGCONT).unwrap();
    pair.calm_is_served_at_once();
    // The kernel sends SYNs again for which there was no room, and those without a record are reset.
    wait_until("connections without a record are reset", || {
        !pair.records("flood", "no_flow_record").is_empty()
    });
    pair.calm_is_served_at_once();
    pair.mark("go");
    pair.flood_says("recovered");
    assert!(pair.records("calm", "no_flow_record").is_empty());
}

/// Connects without waiting, `count` times; how often it was refused.
const CONNECT: &str = r#"
import errno
def flood(count):
    refused = 0
    for _ in range(count):
        s = socket.socket(); s.setblocking(False)
        said = s.connect_ex((ADDRESS, 80)); s.close()
        assert said in (errno.EINPROGRESS, errno.ECONNREFUSED), said
        refused += said == errno.ECONNREFUSED
    return refused
"#;

#[test]
fn connections_in_a_burst_pass_and_a_flood_is_refused_counted_and_audited_in_its_own_workload() {
    let script = format!(
        r#"{CONNECT}
say("burst", flood(1500), ".")
say("flood", flood(30000), ".")
wait("go")
until_governed(); say("recovered")
wait("end")
"#
    );
    let Some(mut pair) = Pair::new(&script) else { return };
    // The control: what is within the bucket passes.
    pair.flood_says("burst 0 .");
    let refused = pair.flood_number("flood ");
    assert!(refused > 20_000, "of 30,000 only {refused} were refused");
    pair.calm_is_served_at_once();
    wait_until("every refusal is recorded or counted", || {
        pair.counted("flood", "rate_exceeded") >= refused
    });
    assert_eq!(pair.counted("flood", "rate_exceeded"), refused, "each once");
    let first = &pair.records("flood", "kernel_refused")[0];
    assert_eq!((&first["vector"], &first["port"]), (&"rate_exceeded".into(), &80.into()));
    assert_eq!(first["process"]["comm"], "python3");
    pair.mark("go");
    pair.flood_says("recovered");
    assert_eq!(pair.counted("calm", "rate_exceeded"), 0);
}

#[test]
fn without_a_bucket_the_same_flood_of_connections_comes_to_the_gateway() {
    let script = format!("{CONNECT}\nsay('flood', flood(8000), '.')\nwait('end')\n");
    let Some(mut pair) = Pair::with_rate(&script, 1_000_000) else { return };
    assert_eq!(pair.flood_number("flood "), 0);
    assert_eq!(pair.counted("flood", "rate_exceeded"), 0);
}

#[test]
fn a_flood_of_dns_datagrams_is_refused_and_counted_in_its_own_workload_whatever_the_socket() {
    let Some(mut pair) = Pair::new(
        r#"
import errno
def flood(count, connected):
    refused, s = 0, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setblocking(False)
    query = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01n\x04test\x00\x00\x01\x00\x01"
    if connected: s.connect((ADDRESS, 53))
    for _ in range(count):
        try:
            if connected: s.send(query)
            else: s.sendto(query, (ADDRESS, 53))
        except BlockingIOError: pass
        except OSError as error:
            assert error.errno == (errno.EPERM if connected else errno.ECONNREFUSED), error
            refused += 1
    return refused
say("burst", flood(400, True), flood(400, False), ".")
say("flood", flood(20000, True) + flood(20000, False), ".")
wait("end")
"#,
    ) else {
        return;
    };
    pair.flood_says("burst 0 0 .");
    let refused = pair.flood_number("flood ");
    assert!(refused > 30_000, "of 40,000 only {refused} were refused");
    pair.calm_is_served_at_once();
    wait_until("every refusal is recorded or counted", || {
        pair.counted("flood", "rate_exceeded") >= refused
    });
    assert_eq!(pair.counted("flood", "rate_exceeded"), refused, "each once");
    assert_eq!(pair.counted("calm", "rate_exceeded"), 0);
}
