//! What one workload can make the gateway hold, measured.

use std::fs;

use crate::common::wait_until;
use crate::pair::Pair;

/// A line of the gateway's memory, in KiB.
fn memory(pair: &Pair, name: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", pair.daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// How much the gateway has grown at most, once it has grown at all by what the test sends: less would prove nothing.
fn most_grown(pair: &Pair, before: usize) -> usize {
    wait_until("the gateway holds what was sent", || memory(pair, "VmRSS") > before + SENT_KIB / 2);
    memory(pair, "VmHWM") - before
}

/// What one workload may make the gateway hold: 192 KiB for each of 1,024 connections, and 384 MiB besides.
const HELD_KIB: usize = (192 + 384) * 1024;

/// What each test makes it hold, about.
const SENT_KIB: usize = 120 * 1024;

#[test]
fn unfinished_heads_of_every_connection_stay_within_what_is_reckoned_for_them() {
    let Some(mut pair) = Pair::new(
        r#"
kept, head = [], b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: " + b"y" * 120 * 1024
for _ in range(1024):
    s = opened(); s.setblocking(False); kept.append((s, memoryview(head)))
begun = time.monotonic()
for _ in range(50):
    left = []
    for s, rest in kept:
        try: rest = rest[s.send(rest):]
        except OSError: pass
        left.append((s, rest))
    kept = left
    if not any(len(rest) for _, rest in kept): break
    time.sleep(0.05)
say("sent", sum(len(head) - len(rest) for _, rest in kept))
wait("end")
"#,
    ) else {
        return;
    };
    let before = memory(&pair, "VmRSS");
    pair.flood_says("sent");
    let grown = most_grown(&pair, before);
    assert!(grown < HELD_KIB, "{grown} KiB");
    pair.calm_is_served_at_once();
}

#[test]
fn uploads_over_http2_that_nobody_takes_stay_within_what_is_reckoned_for_them() {
    let Some(mut pair) = Pair::new(
        r#"
import struct
def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
def text(name_index, value):
    return bytes([name_index, len(value)]) + value
HEAD = b"\x83\x86" + text(0x44, b"/held") + text(0x41, ADDRESS.encode())
OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
def upload():
    data = b""
    for stream in range(1, 9, 2):
        data += frame(1, 4, stream, HEAD)
        data += b"".join(frame(0, 0, stream, bytes(16000)) for _ in range(16))
    return data
kept, closed, data = [], 0, upload()
for _ in range(300):
    s = opened(); s.sendall(OPENING)
    try:
        if not s.recv(65536): raise ConnectionResetError("closed")
    except OSError: closed += 1; continue
    s.sendall(frame(4, 1, 0, b"")); s.setblocking(False); kept.append([s, memoryview(data)])
for _ in range(100):
    for entry in kept:
        try: entry[1] = entry[1][entry[0].send(entry[1]):]
        except BlockingIOError: pass
        except OSError: closed += 1; entry[1] = entry[1][:0]
    time.sleep(0.03)
say("sent", sum(len(data) - len(rest) for _, rest in kept), "closed", closed)
wait("end")
"#,
    ) else {
        return;
    };
    let before = memory(&pair, "VmRSS");
    pair.flood_says("sent");
    let grown = most_grown(&pair, before);
    assert!(grown < HELD_KIB, "{grown} KiB");
    let refused = pair.records("flood", "quota_exceeded");
    assert!(!refused.is_empty(), "300 such connections do not fit");
    pair.calm_is_served_at_once();
    assert!(pair.records("calm", "quota_exceeded").is_empty());
}
