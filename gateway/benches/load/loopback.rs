//! Flows from this program to itself: what the programs on every packet of its cgroup cost.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// As small as a DNS query.
const PACKET_BYTES: usize = 64;
const CHUNK_BYTES: usize = 64 * 1024;

/// Datagrams that arrive in a second.
pub(crate) fn packets(length: Duration) -> Result<f64> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    sender.connect(receiver.local_addr()?)?;
    let (arrived, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let reading = {
        let (arrived, ended) = (Arc::clone(&arrived), Arc::clone(&ended));
        std::thread::spawn(move || {
            let mut packet = [0; PACKET_BYTES];
            while !ended.load(Ordering::Relaxed) {
                if receiver.recv(&mut packet).is_ok() {
                    arrived.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    };
    let started = Instant::now();
    while started.elapsed() < length {
        sender.send(&[0; PACKET_BYTES])?;
    }
    let rate = arrived.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    ended.store(true, Ordering::Relaxed);
    ensure!(reading.join().is_ok(), "the receiver panicked");
    Ok(rate)
}

/// Bytes that arrive in a second.
#[expect(clippy::disallowed_methods, reason = "a program that measures, not the gateway")]
pub(crate) fn bytes(length: Duration) -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let reading = std::thread::spawn(move || {
        let (mut chunk, mut arrived) = (vec![0; CHUNK_BYTES], 0_u64);
        while let Ok(read @ 1..) = receiver.read(&mut chunk) {
            arrived += read as u64;
        }
        arrived
    });
    let (chunk, started) = (vec![0; CHUNK_BYTES], Instant::now());
    while started.elapsed() < length {
        sender.write_all(&chunk)?;
    }
    drop(sender);
    let arrived = reading.join().map_err(|_panic| anyhow::anyhow!("the receiver panicked"))?;
    Ok(arrived as f64 / started.elapsed().as_secs_f64())
}
