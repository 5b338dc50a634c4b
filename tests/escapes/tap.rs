//! Every frame at three points of a world, with its bytes, whatever protocol it is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

/// Where a frame was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// It came out of the workload's interface: at the host's end of the pair, before any program there.
    Offered,
    /// It came to the bridge from one of its ports, past the programs there.
    Bridge,
    /// It came to the outside namespace, over the bridge or forwarded.
    Outside,
}

/// A frame that arrived somewhere.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) at: Point,
    /// From the first byte of its Ethernet header, at most [`KEPT`].
    pub(crate) bytes: Vec<u8>,
}

/// Frames of all taps of one world, in the order of their arrival.
pub(crate) type Frames = Arc<Mutex<Vec<Frame>>>;

/// Reads a packet socket on a thread of its own.
pub(crate) struct Tap {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Bytes of a frame that are kept.
const KEPT: usize = 2048;
/// Frames that a world keeps; more than that is a flood, of which the first are enough.
const FRAMES: usize = 200_000;
/// Every Ethernet protocol (`ETH_P_ALL`), in network byte order as packet(7) wants it.
const EVERY_PROTOCOL: i32 = 0x0003_u16.to_be() as i32;
/// `PACKET_OUTGOING`: what this namespace sends is not what arrives in it.
const OUTGOING: u8 = 4;

impl Tap {
    /// Opens the packet socket in the calling thread's namespace; `points` says which of its devices count as what,
    /// none means all.
    pub(crate) fn open(points: &[(Option<&str>, Point)], frames: &Frames) -> Self {
        let points: Vec<(Option<usize>, Point)> = points
            .iter()
            .map(|(name, at)| (name.map(|name| if_nametoindex(name).unwrap() as usize), *at))
            .collect();
        let socket =
            Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL))).unwrap();
        socket.set_recv_buffer_size(8 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, frames) = (Arc::clone(&stop), Arc::clone(frames));
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; KEPT];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut bytes)
                else {
                    continue;
                };
                let device = |&&(index, _): &&(Option<usize>, Point)| {
                    index.is_none_or(|index| index == from.ifindex())
                };
                let Some((_, at)) = points.iter().find(device) else { continue };
                let mut frames = frames.lock().unwrap();
                if from.pkttype() != OUTGOING && frames.len() < FRAMES {
                    frames.push(Frame { at: *at, bytes: bytes[..length.min(KEPT)].to_vec() });
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread that counts frames has panicked");
        }
    }
}

impl Frame {
    /// Source address of the Ethernet header.
    pub(crate) fn source_mac(&self) -> [u8; 6] {
        self.bytes.get(6..12).and_then(|mac| mac.try_into().ok()).unwrap_or_default()
    }

    pub(crate) fn ethertype(&self) -> u16 {
        self.bytes.get(12..14).map_or(0, |kind| u16::from_be_bytes([kind[0], kind[1]]))
    }

    /// Whether these bytes stand anywhere in it.
    pub(crate) fn contains(&self, bytes: &[u8]) -> bool {
        self.bytes.windows(bytes.len()).any(|window| window == bytes)
    }

    /// Source, destination, protocol number and destination port (0 where there is none) of an IP packet. The
    /// protocol of IPv6 is the one behind its extension headers.
    pub(crate) fn packet(&self) -> Option<(IpAddr, IpAddr, u8, u16)> {
        let packet = self.bytes.get(14..)?;
        let (from, to, protocol, payload) = match self.ethertype() {
            0x0800 => {
                let header = usize::from(packet.first()? & 0x0f) * 4;
                let address =
                    |at| Some(IpAddr::V4(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?)));
                (address(12)?, address(16)?, *packet.get(9)?, packet.get(header..)?)
            }
            0x86dd => {
                let address =
                    |at| Some(IpAddr::V6(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?)));
                let (protocol, payload) = behind_extensions(*packet.get(6)?, packet.get(40..)?)?;
                (address(8)?, address(24)?, protocol, payload)
            }
            _not_ip => return None,
        };
        // TCP, UDP and UDP-Lite.
        let port = payload.get(2..4).filter(|_| matches!(protocol, 6 | 17 | 136));
        Some((from, to, protocol, port.map_or(0, |port| u16::from_be_bytes([port[0], port[1]]))))
    }

    /// Whether the kernel makes such frames by itself, to keep a link running: ARP, neighbour discovery, group
    /// membership.
    pub(crate) fn is_link_upkeep(&self) -> bool {
        const ARP: u16 = 0x0806;
        const IGMP: u8 = 2;
        const ICMPV6: u8 = 58;
        let neighbour_or_group = || {
            let extensions = usize::from(self.bytes.get(20) == Some(&0)) * 8;
            self.bytes.get(54 + extensions).is_some_and(|kind| matches!(kind, 130..=137 | 143))
        };
        match self.packet() {
            None => self.ethertype() == ARP,
            Some((_, _, IGMP, _)) => true,
            Some((_, _, ICMPV6, _)) => neighbour_or_group(),
            Some(_) => false,
        }
    }
}

fn behind_extensions(mut next: u8, mut rest: &[u8]) -> Option<(u8, &[u8])> {
    while matches!(next, 0 | 43 | 60) {
        let length = (usize::from(*rest.get(1)?) + 1) * 8;
        (next, rest) = (*rest.first()?, rest.get(length..)?);
    }
    Some((next, rest))
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = self.source_mac();
        write!(f, "{:?} from {mac:02x?} type {:04x}", self.at, self.ethertype())?;
        if let Some((from, to, protocol, port)) = self.packet() {
            write!(f, " {from} -> {to} protocol {protocol} port {port}")?;
        }
        write!(f, " {} bytes: {}", self.bytes.len(), self.bytes.escape_ascii())
    }
}
