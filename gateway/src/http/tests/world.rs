//! A gateway for one workload, its origins, and its audit log.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex,
};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::agent::{Agent, AgentName};
use crate::audit::{Kind, Process, Reason, Sink};
use crate::config::Config;
use crate::credentials::Vault;
use crate::dns::SyntheticPool;
use crate::gateway::lane::Lane;
use crate::gateway::quota::Quota;
use crate::gateway::{Lifecycle, Rules, Stages};
use crate::http::{Body, ConnectionRecord, Target, serve_stream};
use crate::net::Host;
use crate::state::Limits;
use crate::terminate::{Authority, Terminator};
use crate::upstream::Upstreams;
use crate::upstream::resolve::Resolver;
use crate::upstream::testing::{TestCa, origin};

pub(super) struct World {
    pub(super) stages: Arc<Stages>,
    audit: AuditLog,
    gateway_ca: String,
    upstream_ca: TestCa,
    directory: tempfile::TempDir,
}

#[derive(Clone, Default)]
struct AuditLog(Arc<Mutex<Vec<u8>>>, Arc<AtomicBool>);

impl Write for AuditLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Agents and hosts of every test: `worker` is closed by default.
const BASE: &str = r#"
[upstream.hosts]
"origin.test" = ["127.0.0.1"]
"other.test" = ["127.0.0.1"]

[[agent]]
name = "worker"
default = "deny"
"#;

/// A rule that allows everything at the origins.
pub(super) const OPEN: &str = r#"
[[rule]]
name = "open"
hosts = ["origin.test", "other.test"]
action = "allow"
allow_private = true
"#;

impl World {
    pub(super) fn new(rules: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let upstream_ca = TestCa::new();
        let roots = upstream_ca.write(directory.path());
        let text = format!("[upstream]\nca_files = [{roots:?}]\n{BASE}\n{rules}");
        let config = Config::parse(&directory.path().join("t.toml"), &text)
            .unwrap_or_else(|errors| panic!("{errors}"));
        let vault = Vault::load(&config.policy, &|name| Some(format!("secret-of-{name}\n").into()))
            .unwrap_or_else(|errors| panic!("{errors:?}"));
        let state = directory.path().join("state");
        let authority = Authority::open(&state).unwrap();
        let gateway_ca = authority.ca_pem().to_owned();
        let resolver = Resolver::new(&config.upstream).unwrap();
        let audit = AuditLog::default();
        let agent = Agent {
            name: AgentName::parse("worker").unwrap(),
            workload: "run-1".to_owned(),
            container: None,
            cgroup_id: 1,
            netns_cookie: 1,
            tally: Arc::default(),
        };
        let quota = Arc::new(Quota::new(Lane::new(1), 1_000_000));
        let rules = Rules { policy: Arc::clone(&config.policy), vault };
        let stages = Stages {
            agent: Arc::new(agent),
            rules: Arc::new(ArcSwap::from_pointee(rules)),
            limits: Limits::open(&state).unwrap(),
            upstream: Upstreams::new(&config.upstream, resolver).unwrap().of_workload(&quota),
            terminator: Terminator::new(Arc::new(ArcSwap::from_pointee(authority))),
            names: Arc::new(SyntheticPool::new()),
            audit: Sink::to_writer(Box::new(audit.clone())),
            quota,
            lifecycle: Lifecycle::default(),
        };
        Self { stages: Arc::new(stages), audit, gateway_ca, upstream_ca, directory }
    }

    /// A connection that the agent made to `host`:`port`.
    pub(super) fn connect(&self, host: &str, port: u16) -> DuplexStream {
        let (agent, gateway) = duplex(64 * 1024);
        tokio::spawn(self.serve(host, port, gateway));
        agent
    }

    fn serve(
        &self,
        host: &str,
        port: u16,
        stream: DuplexStream,
    ) -> impl Future<Output = ()> + Send + use<> {
        let target = Target { host: Host::parse(host).unwrap(), port, in_tunnel: false };
        let stages = Arc::clone(&self.stages);
        let record = stages.audit.open(Kind::Connection, &stages.agent, Reason::ClientClosed);
        let process = Process { pid: 7, comm: "curl".to_owned(), exe: None };
        serve_stream(stages, target, process, ConnectionRecord::new(record), stream)
    }

    /// What the task of one connection holds, besides what it allocates.
    pub(super) fn connection_future_bytes(&self) -> usize {
        size_of_val(&self.serve("origin.test", 80, duplex(1).1))
    }

    /// TLS over `stream`, trusting the gateway's CA.
    pub(super) async fn tls<S>(&self, stream: S, name: &str, alpn: &[&[u8]]) -> TlsStream<S>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.gateway_ca.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// The database of the counters, for a test to break.
    pub(super) fn counters(&self) -> rusqlite::Connection {
        let database =
            rusqlite::Connection::open(self.directory.path().join("state/state.db")).unwrap();
        database.busy_timeout(PATIENCE).unwrap();
        database
    }

    /// Whether the audit log's disk is full.
    pub(super) fn fill_disk(&self, is_full: bool) {
        self.audit.1.store(is_full, Ordering::Relaxed);
    }

    /// Sends `request` on a connection to `host`:`port`, and reads to the end.
    pub(super) async fn ask(&self, host: &str, port: u16, request: &str) -> String {
        exchange(self.connect(host, port), request).await
    }

    /// The records, once there are `count` of them.
    pub(super) async fn records(&self, count: usize) -> Vec<Value> {
        let seen = || -> Vec<Value> {
            let log = self.audit.0.lock().unwrap();
            log.split(|b| *b == b'\n')
                .filter(|line| !line.is_empty())
                .map(|line| serde_json::from_slice(line).unwrap())
                .collect()
        };
        let waiting = async {
            while seen().len() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(PATIENCE, waiting).await.is_err() {
            panic!("{count} records wanted, there are {:#?}", seen());
        }
        let records = seen();
        assert_eq!(records.len(), count, "{records:#?}");
        records
    }

    pub(super) async fn record(&self) -> Value {
        self.records(1).await.remove(0)
    }

    /// A plain HTTP/1.1 origin.
    pub(super) async fn origin<F>(&self, answer: F) -> Origin
    where
        F: Fn(Seen) -> Response<Body> + Clone + Send + Sync + 'static,
    {
        let seen = Heads::default();
        let heads = Arc::clone(&seen);
        let (address, _) =
            origin(move |stream| serve_origin(stream, false, answer.clone(), Arc::clone(&heads)))
                .await;
        Origin { port: address.port(), seen }
    }

    /// An origin that speaks HTTP/2 without TLS.
    pub(super) async fn plain_http2_origin<F>(&self, answer: F) -> Origin
    where
        F: Fn(Seen) -> Response<Body> + Clone + Send + Sync + 'static,
    {
        let seen = Heads::default();
        let heads = Arc::clone(&seen);
        let (address, _) =
            origin(move |stream| serve_origin(stream, true, answer.clone(), Arc::clone(&heads)))
                .await;
        Origin { port: address.port(), seen }
    }

    /// An origin over TLS for `origin.test`, HTTP/2 or HTTP/1.1.
    pub(super) async fn tls_origin<F>(&self, is_http2: bool, answer: F) -> Origin
    where
        F: Fn(Seen) -> Response<Body> + Clone + Send + Sync + 'static,
    {
        let protocol: &[u8] = if is_http2 { b"h2" } else { b"http/1.1" };
        let acceptor = self.upstream_ca.acceptor(&["origin.test"], &[protocol]);
        let seen = Heads::default();
        let heads = Arc::clone(&seen);
        let (address, _) =
            origin(move |stream| {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                let heads = Arc::clone(&heads);
                async move {
                    serve_origin(acceptor.accept(stream).await?, is_http2, answer, heads).await
                }
            })
            .await;
        Origin { port: address.port(), seen }
    }
}

/// What an origin saw of a request.
pub(super) struct Seen {
    pub(super) head: Parts,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Option<http::HeaderMap>,
}

type Heads = Arc<Mutex<Vec<Parts>>>;

pub(super) struct Origin {
    pub(super) port: u16,
    seen: Heads,
}

impl Origin {
    /// The heads of the requests that came.
    pub(super) fn heads(&self) -> Vec<Parts> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve_origin<S, F>(
    stream: S,
    is_http2: bool,
    answer: F,
    heads: Heads,
) -> BoxFuture<'static, io::Result<()>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Seen) -> Response<Body> + Clone + Send + Sync + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, heads) = (answer.clone(), Arc::clone(&heads));
        async move {
            let (head, body) = request.into_parts();
            heads.lock().unwrap().push(head.clone());
            let collected = body.collect().await?;
            let trailers = collected.trailers().cloned();
            let body = collected.to_bytes().to_vec();
            Ok::<_, hyper::Error>(answer(Seen { head, body, trailers }))
        }
    });
    Box::pin(async move {
        let io = TokioIo::new(stream);
        let served = if is_http2 {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, service)
                .await
        } else {
            hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
        };
        served.map_err(io::Error::other)
    })
}

/// Writes `request`, closes that direction, and reads to the end.
pub(super) async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> String {
    let talk = async {
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    timeout(PATIENCE, talk).await.expect("the exchange should have ended")
}

/// Reads until `end` has come.
pub(super) async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut seen = Vec::new();
    let reading = async {
        while !seen.ends_with(end.as_bytes()) {
            assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0, "the connection ended");
        }
    };
    if timeout(PATIENCE, reading).await.is_err() {
        panic!("{end:?} did not come");
    }
    String::from_utf8(seen).unwrap()
}

/// The JSON of a refusal.
pub(super) fn json_of(answer: &str) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    assert!(head.contains("content-type: application/json"), "{head}");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

pub(super) fn ok(body: &'static str) -> Response<Body> {
    Response::new(Body::full(body))
}

pub(super) const PATIENCE: Duration = Duration::from_secs(60);
