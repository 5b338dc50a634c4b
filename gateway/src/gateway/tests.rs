//! The whole unprivileged half on real sockets of this machine's loopback.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, UdpSocket as StdUdp};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::agent::AgentName;
use crate::audit::Process;
use crate::capture::Flow;
use crate::net::{ClientAddr, OriginalDst};
use crate::upstream::testing::origin;

/// What the kernel would have recorded.
#[derive(Default)]
struct Flows(Mutex<HashMap<SocketAddr, SocketAddr>>);

impl FlowTable for Flows {
    fn take(&self, client: ClientAddr) -> Option<Flow> {
        let original_dst = OriginalDst(self.0.lock().unwrap().remove(&client.0)?);
        Some(Flow { original_dst, process: Process::default(), cgroup_id: 1 })
    }
}

struct World {
    gateway: Gateway,
    serving: Serving,
    flows: Arc<Flows>,
    listener: SocketAddr,
    audit: std::path::PathBuf,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let audit = directory.path().join("audit.jsonl");
        let config = config(&directory, OPEN);
        let vault = Vault::load(&config.policy, &|_| None).unwrap_or_else(|e| panic!("{e:?}"));
        let authority = Authority::open(&state).unwrap();
        let sink = Sink::open_file(&audit).unwrap();
        let gateway = Gateway::new(&config, vault, authority, sink).unwrap();
        let agent = Arc::new(Agent {
            name: AgentName::parse("worker").unwrap(),
            workload: "run-1".to_owned(),
            container: None,
            cgroup_id: 1,
            netns_cookie: 1,
            tally: Arc::default(),
        });
        let tcp = StdListener::bind("127.0.0.1:0").unwrap();
        let udp = StdUdp::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        let listener = tcp.local_addr().unwrap();
        let flows = Arc::new(Flows::default());
        let listeners = Listeners { tcp: vec![tcp], udp: vec![udp], ipv6: None };
        let table = Arc::clone(&flows) as Arc<dyn FlowTable>;
        let serving = gateway.serve(agent, listeners, table, &Search::default()).unwrap();
        Self { gateway, serving, flows, listener, audit, directory }
    }

    /// Connects as the redirect does; without `destination` the kernel has no record.
    async fn connect(&self, destination: Option<SocketAddr>) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        if let Some(destination) = destination {
            let client = socket.local_addr().unwrap();
            self.flows.0.lock().unwrap().insert(client, destination);
        }
        socket.connect(self.listener).await.unwrap()
    }

    async fn get(&self, destination: SocketAddr) -> String {
        let mut stream = self.connect(Some(destination)).await;
        let request = format!("GET / HTTP/1.1\r\nHost: {destination}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    async fn record(&self) -> Value {
        let reading = async {
            loop {
                let text = std::fs::read_to_string(&self.audit).unwrap();
                if let Some(line) = text.lines().next() {
                    return serde_json::from_str(line).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, reading).await.expect("a record should have been written")
    }
}

const OPEN: &str = "[[rule]]\nname = \"open\"\naction = \"allow\"\nallow_private = true\nhosts = [\"127.0.0.1\"]\n";
const PATIENCE: Duration = Duration::from_secs(20);

fn config(directory: &tempfile::TempDir, rules: &str) -> Config {
    let state = directory.path().join("state");
    let text = format!(
        "[gateway]\nstate_dir = {state:?}\n[[agent]]\nname = \"worker\"\ndefault = \"deny\"\n{rules}"
    );
    Config::parse(&directory.path().join("t.toml"), &text).unwrap_or_else(|e| panic!("{e}"))
}

async fn http_origin() -> SocketAddr {
    origin(|mut stream| async move {
        let mut seen = [0; 1024];
        assert_ne!(stream.read(&mut seen).await?, 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await
    })
    .await
    .0
}

#[tokio::test]
async fn a_connection_goes_where_the_kernel_says_it_was_made_to() {
    let world = World::new();
    let answer = world.get(http_origin().await).await;
    assert!(answer.ends_with("\r\n\r\nhi"), "{answer}");
    let record = world.record().await;
    assert_eq!(record["kind"], "request");
    assert_eq!(record["workload"], "run-1");
}

#[tokio::test]
async fn a_connection_without_a_flow_record_is_reset_and_audited() {
    let world = World::new();
    let mut stream = world.connect(None).await;
    let mut answer = [0; 16];
    let ended = timeout(PATIENCE, stream.read(&mut answer)).await.unwrap();
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
    let record = world.record().await;
    assert_eq!(
        (&record["kind"], &record["reason"]),
        (&"connection".into(), &"no_flow_record".into())
    );
    // The next connection is served all the same.
    assert!(world.get(http_origin().await).await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn tcp_to_port_53_is_a_dns_query() {
    let world = World::new();
    let mut stream = world.connect(Some("192.0.2.53:53".parse().unwrap())).await;
    // A query for `x.test` A: length, id 7, recursion desired, one question.
    let query = b"\x00\x18\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01x\x04test\x00\x00\x01\x00\x01";
    stream.write_all(query).await.unwrap();
    let mut answer = [0; 4];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer[2..4], [0, 7], "the answer has the query's id");
    assert_eq!(world.record().await["kind"], "dns");
}

#[tokio::test]
async fn a_reload_governs_open_connections() {
    let world = World::new();
    let origin = http_origin().await;
    let mut stream = world.connect(Some(origin)).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {origin}\r\n\r\n");
    let mut answer = [0; 12];
    stream.write_all(request.as_bytes()).await.unwrap();
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    while !answer.ends_with(b"hi") {
        answer.rotate_left(1);
        timeout(PATIENCE, stream.read_exact(&mut answer[11..])).await.unwrap().unwrap();
    }
    let closed = config(&world.directory, "");
    let vault = Vault::load(&closed.policy, &|_| None).unwrap_or_else(|e| panic!("{e:?}"));
    world.gateway.reload(closed.policy, vault);
    stream.write_all(request.as_bytes()).await.unwrap();
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[tokio::test]
async fn stopping_lets_a_request_end_and_accepts_no_other() {
    let world = World::new();
    let (slow, _) = origin(|mut stream| async move {
        let mut seen = [0; 1024];
        assert_ne!(stream.read(&mut seen).await?, 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nha").await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.write_all(b"lf").await
    })
    .await;
    let mut stream = world.connect(Some(slow)).await;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {slow}\r\n\r\n").as_bytes()).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert!(world.serving.stop(PATIENCE).await, "everything ends by itself");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("half"), "{rest}");
    let refused = TcpSocket::new_v4().unwrap().connect(world.listener).await;
    assert_eq!(refused.map_err(|error| error.kind()).err(), Some(io::ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn stopping_cuts_what_does_not_end_in_time_and_records_it() {
    let world = World::new();
    let (silent, _) = origin(|mut stream| async move {
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).await.map(drop)
    })
    .await;
    let mut stream = world.connect(Some(silent)).await;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {silent}\r\n\r\n").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let audit = world.audit.clone();
    assert!(!world.serving.stop(Duration::from_millis(50)).await);
    let text = std::fs::read_to_string(audit).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
}
