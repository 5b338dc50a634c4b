//! An agent that wants all of the gateway for itself. It goes on until it is killed.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Plan, open};

/// As many as there are processors on a small machine.
const THREADS: usize = 2;

/// Connects and resets, on every thread.
pub(crate) fn connections(target: SocketAddr) -> Result<f64> {
    on_all_threads(move || {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_linger(Some(Duration::ZERO))?;
        // Refused or reset: the next one.
        drop(socket.connect(&target.into()));
        Ok(())
    })
}

/// Asks for names that do not exist, and reads what answers there are.
pub(crate) fn queries(target: SocketAddr) -> Result<f64> {
    let socket = Arc::new(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?);
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    let counter = std::sync::atomic::AtomicU64::new(0);
    on_all_threads(move || {
        let name = format!("{:012x}", counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let mut query = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x0c".to_vec();
        query.extend_from_slice(name.as_bytes());
        query.extend_from_slice(b"\x05bench\x07example\x00\x00\x01\x00\x01");
        let mut answer = [0; 512];
        // A full buffer: the next one.
        drop(socket.send(&query));
        while socket.recv(&mut answer).is_ok() {}
        Ok(())
    })
}

/// Computes.
pub(crate) fn nothing() -> Result<f64> {
    on_all_threads(|| {
        std::hint::spin_loop();
        Ok(())
    })
}

/// Sends requests that are refused over connections that stay open.
pub(crate) async fn requests(plan: Arc<Plan>, parallel: usize) -> Result<f64> {
    let workers: Vec<_> = (0..parallel).map(|_| tokio::spawn(refused(Arc::clone(&plan)))).collect();
    for worker in workers {
        worker.await??;
    }
    Ok(0.0)
}

async fn refused(plan: Arc<Plan>) -> Result<()> {
    loop {
        let mut sender = open(&plan).await?;
        while sender.ready().await.is_ok() {
            let request = http::Request::delete("/")
                .header(http::header::HOST, &plan.name)
                .body(Empty::<Bytes>::new())?;
            let Ok(response) = sender.send_request(request).await else { break };
            if response.into_body().collect().await.is_err() {
                break;
            }
        }
    }
}

fn on_all_threads(work: impl Fn() -> Result<()> + Send + Sync) -> Result<f64> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(move || -> Result<()> {
                    loop {
                        work()?;
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_panic| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(0.0)
    })
}
