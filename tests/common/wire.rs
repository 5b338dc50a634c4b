//! Counts what arrives in a namespace, frame by frame, whatever protocol it is.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// What is remembered of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Frame {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// Destination port of TCP and UDP, else 0.
    pub(crate) port: u16,
}

/// All frames on all interfaces of one namespace.
pub(crate) struct Wire {
    seen: Arc<Mutex<HashMap<Frame, usize>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Every Ethernet protocol (`ETH_P_ALL`), in network byte order as packet(7) wants it.
const EVERY_PROTOCOL: i32 = 0x0003_u16.to_be() as i32;

impl Wire {
    /// Opens the packet socket in the calling thread's namespace and reads it on a thread of its own.
    pub(crate) fn tap() -> Self {
        let mut socket =
            Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL))).unwrap();
        socket.set_recv_buffer_size(8 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let seen = Arc::new(Mutex::new(HashMap::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (sink, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 128];
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = socket.read(&mut bytes) else { continue };
                if let Some(frame) = parse(&bytes[..length.min(bytes.len())]) {
                    *sink.lock().unwrap().entry(frame).or_insert(0) += 1;
                }
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// How many frames so far are as `matches` says.
    pub(crate) fn count(&self, matches: impl Fn(&Frame) -> bool) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(frame, _)| matches(frame)).map(|(_, count)| count).sum()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread that counts frames has panicked");
        }
    }
}

fn parse(frame: &[u8]) -> Option<Frame> {
    let (ethertype, packet) = (frame.get(12..14)?, frame.get(14..)?);
    let (from, to, protocol, payload) = match ethertype {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let from = Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?);
            let to = Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?);
            (IpAddr::V4(from), IpAddr::V4(to), *packet.get(9)?, packet.get(header..)?)
        }
        [0x86, 0xdd] => {
            let from = Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?);
            let to = Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?);
            (IpAddr::V6(from), IpAddr::V6(to), *packet.get(6)?, packet.get(40..)?)
        }
        _arp_and_the_like => return None,
    };
    let has_ports = matches!(protocol, 6 | 17);
    let port = payload.get(2..4).filter(|_| has_ports);
    let port = port.map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
    Some(Frame { from, to, protocol, port })
}
