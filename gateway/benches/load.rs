//! The load client of `cargo xtask bench`: the same program measures with and without the gateway.
//!
//! `load WHAT --connect IP:PORT --name HOST --seconds N [--ca PEM] [--parallel N]` prints one number a line: what
//! was reached in a second, or what one operation cost. It asserts every answer: a refusal is not a fast request.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program whose output is a number"
)]

#[path = "load/flood.rs"]
mod flood;
#[path = "load/loopback.rs"]
mod loopback;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How many `connect()` calls one measurement makes.
const CONNECTS: usize = 2_000;

#[derive(Parser)]
struct Arguments {
    what: What,
    /// Where to connect to.
    #[arg(long)]
    connect: Option<SocketAddr>,
    /// The name in SNI and Host.
    #[arg(long, default_value = "bench.example")]
    name: String,
    /// A root beside the system's.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Which of a hundred measured values, in order, is the result.
    #[arg(long, default_value_t = 50)]
    percentile: usize,
    /// Connections side by side.
    #[arg(long, default_value_t = 16)]
    parallel: usize,
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Requests per second over connections that stay open.
    Requests,
    /// New connections per second, each with a TLS handshake and one request.
    Handshakes,
    /// Nanoseconds of one `connect()` to `--connect`.
    Connect,
    /// The same to a listener of this program's own on loopback.
    Loopback,
    /// Small datagrams per second that arrive at a socket of this program's own on loopback.
    Packets,
    /// Bytes per second over a connection to itself on loopback.
    Bytes,
    /// Microseconds of one request over one connection that stays open.
    Latency,
    /// Connections that are closed at once, until somebody ends it. Prints nothing.
    FloodConnections,
    /// The same with requests that no rule allows.
    FloodRequests,
    /// The same with DNS queries.
    FloodDns,
    /// Keeps processors busy and talks to nobody.
    FloodNothing,
}

fn main() -> ExitCode {
    // `cargo bench` and `cargo test --benches` start every bench; without a task this one has nothing to measure.
    if std::env::args_os().skip(1).all(|argument| argument == "--bench" || argument == "--test") {
        println!("load: started by `cargo xtask bench`");
        return ExitCode::SUCCESS;
    }
    match measure(&Arguments::parse()) {
        Ok(number) => {
            println!("{number:.1}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<f64> {
    let target = || arguments.connect.context("--connect is missing");
    match arguments.what {
        What::Connect => connects(target()?, arguments.percentile),
        What::Loopback => {
            // Nobody accepts: what another thread takes of the processor is not the cost of the call.
            let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
            listener.listen(i32::try_from(2 * CONNECTS)?)?;
            let address = listener.local_addr()?.as_socket().context("no address")?;
            connects(address, arguments.percentile)
        }
        What::Packets => loopback::packets(Duration::from_secs(arguments.seconds)),
        What::Bytes => loopback::bytes(Duration::from_secs(arguments.seconds)),
        What::Latency => {
            let plan = Arc::new(Plan::new(arguments, target()?)?);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(latency(plan, arguments.percentile))
        }
        What::FloodConnections => flood::connections(target()?),
        What::FloodDns => flood::queries(target()?),
        What::FloodNothing => flood::nothing(),
        What::FloodRequests => {
            let plan = Arc::new(Plan::new(arguments, target()?)?);
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(flood::requests(plan, arguments.parallel))
        }
        What::Requests | What::Handshakes => {
            let plan = Arc::new(Plan::new(arguments, target()?)?);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            runtime.block_on(load(plan, arguments.what, arguments.parallel))
        }
    }
}

/// What every connection of a measurement shares.
struct Plan {
    target: SocketAddr,
    name: String,
    server: ServerName<'static>,
    tls: TlsConnector,
    length: Duration,
}

impl Plan {
    fn new(arguments: &Arguments, target: SocketAddr) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        let (_, _unusable) = roots.add_parsable_certificates(system.certs);
        if let Some(path) = &arguments.ca {
            for certificate in CertificateDer::pem_file_iter(path)? {
                roots.add(certificate?)?;
            }
        }
        let mut tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Every handshake is a full one, on both ways.
        tls.resumption = Resumption::disabled();
        Ok(Self {
            target,
            name: arguments.name.clone(),
            server: ServerName::try_from(arguments.name.clone())?,
            tls: TlsConnector::from(Arc::new(tls)),
            length: Duration::from_secs(arguments.seconds),
        })
    }
}

async fn load(plan: Arc<Plan>, what: What, parallel: usize) -> Result<f64> {
    // One request first: errors become clear, and what is built once per name is not measured.
    let mut sender = open(&plan).await?;
    request(&plan, &mut sender).await?;
    let started = Instant::now();
    let deadline = started + plan.length;
    let workers: Vec<_> =
        (0..parallel).map(|_| tokio::spawn(work(Arc::clone(&plan), what, deadline))).collect();
    let mut done = 0_u32;
    for worker in workers {
        done += worker.await??;
    }
    Ok(f64::from(done) / started.elapsed().as_secs_f64())
}

async fn work(plan: Arc<Plan>, what: What, deadline: Instant) -> Result<u32> {
    let mut done = 0;
    let mut kept = None;
    while Instant::now() < deadline {
        let mut sender = match kept.take() {
            Some(sender) => sender,
            None => open(&plan).await?,
        };
        request(&plan, &mut sender).await?;
        done += 1;
        if matches!(what, What::Requests) {
            kept = Some(sender);
        }
    }
    Ok(done)
}

#[expect(clippy::disallowed_methods, reason = "the client of the gateway, not the gateway")]
async fn open(plan: &Plan) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(plan.target).await.context("connect")?;
    stream.set_nodelay(true)?;
    // A reset instead of TIME_WAIT: with thousands of those, the search for a free port would be what is measured.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let stream = plan.tls.connect(plan.server.clone(), stream).await.context("TLS handshake")?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move { connection.await.is_ok() });
    Ok(sender)
}

async fn request(plan: &Plan, sender: &mut SendRequest<Empty<Bytes>>) -> Result<()> {
    sender.ready().await?;
    let request =
        http::Request::get("/").header(http::header::HOST, &plan.name).body(Empty::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(status.is_success() && body.len() == 1024, "status {status}, {} bytes", body.len());
    Ok(())
}

/// The cost of one call, in nanoseconds: one SYN that is sent again would be the whole mean.
fn connects(target: SocketAddr, percentile: usize) -> Result<f64> {
    let mut spent = Vec::with_capacity(CONNECTS);
    for _ in 0..CONNECTS {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        // A reset instead of TIME_WAIT, or the measurement runs out of ports.
        socket.set_linger(Some(Duration::ZERO))?;
        let started = Instant::now();
        socket.connect(&target.into())?;
        spent.push(started.elapsed());
    }
    Ok(of_hundred(spent, percentile)?.as_secs_f64() * 1e9)
}

/// One request after the other.
async fn latency(plan: Arc<Plan>, percentile: usize) -> Result<f64> {
    let mut sender = open(&plan).await?;
    request(&plan, &mut sender).await?;
    let deadline = Instant::now() + plan.length;
    let mut spent = Vec::new();
    while Instant::now() < deadline {
        let started = Instant::now();
        request(&plan, &mut sender).await?;
        spent.push(started.elapsed());
    }
    Ok(of_hundred(spent, percentile)?.as_secs_f64() * 1e6)
}

fn of_hundred(mut values: Vec<Duration>, percentile: usize) -> Result<Duration> {
    values.sort_unstable();
    let at = values.len() * percentile / 100;
    values.get(at).copied().context("nothing was measured")
}
