//! Many connections at once: each has its record.

use std::collections::{BTreeMap, BTreeSet};

use crate::isolation::held;
use crate::tollgate::{Host, wait_for};

#[test]
fn two_thousand_quick_connections_all_have_their_own_record() {
    let Some(host) = Host::new("") else { return };
    // The workload goes on until the log is complete: what still waits for accept when a run ends has nobody left to
    // be answered, and gets no record.
    let run = held(
        &host,
        r#"
import socket, threading, time
def connect(thread):
    for i in range(250):
        s = socket.socket(); s.connect(("203.0.113.%d" % (thread + 1), 1000 + i))
        s.sendall(b"\x00nonsense"); s.close()
threads = [threading.Thread(target=connect, args=(t,)) for t in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
open("up", "w").close()
while not os.path.exists("go"): time.sleep(0.02)
"#,
    );
    wait_for("the log", || (host.records().len() >= 2000).then_some(()));
    std::fs::write(host.folder().join("go"), "").unwrap();
    run.finish().success();
    let records = host.records();
    let mut by_reason: BTreeMap<String, usize> = BTreeMap::new();
    let mut destinations = BTreeSet::new();
    for record in &records {
        *by_reason.entry(record["reason"].as_str().unwrap().to_owned()).or_default() += 1;
        destinations.insert(format!("{} {}", record["host"], record["port"]));
    }
    assert_eq!(by_reason.get("no_flow_record"), None, "{by_reason:?}");
    assert_eq!(records.len(), 2000, "{by_reason:?}");
    assert_eq!(destinations.len(), 2000, "{by_reason:?}");
}
