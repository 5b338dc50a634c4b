//! What a frame on a workload's wire is, and what becomes of it: pure functions, the same code in kernel and tests.
//!
//! A wire is closed: what is not named here is dropped. Named are, in IPv4 without options and fragments, the segments
//! of TCP connections to neighbours that the operator lists, those of connections that came in to a port that the
//! operator lists, and the ARP that such connections need.

use crate::abi::{Device, HAS_INBOUND};

/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of an IPv4 header without options: no other is let through.
pub const IPV4_BYTES: usize = 20;
/// The bytes of a TCP header up to its flags.
pub const TCP_BYTES: usize = 14;
/// Bytes of an ARP message for IPv4 over Ethernet.
pub const ARP_BYTES: usize = 28;
/// The shortest frame that hardware sends: shorter ones are filled up.
pub const SHORTEST_FRAME: u32 = 60;

/// Which way a frame goes, seen from the workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The workload sends it.
    Out,
    /// The workload would receive it.
    In,
}

/// An Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ethernet {
    /// Receiver.
    pub to: [u8; 6],
    /// Sender.
    pub from: [u8; 6],
    /// What it carries.
    pub kind: u16,
}

/// Ethernet's number of IPv4.
pub const IPV4: u16 = 0x0800;
/// Ethernet's number of ARP.
pub const ARP: u16 = 0x0806;
/// Everybody on the wire.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// An IPv4 header of a whole TCP segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4 {
    /// Sender.
    pub from: [u8; 4],
    /// Receiver.
    pub to: [u8; 4],
    /// Bytes of the packet, header included.
    pub length: u16,
}

/// What counts of a TCP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tcp {
    /// Sender's port.
    pub from: u16,
    /// Receiver's port.
    pub to: u16,
    /// FIN, SYN, RST, ACK and others.
    pub flags: u8,
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// An ARP message for IPv4 over Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// [`REQUEST`] or [`REPLY`].
    pub operation: u16,
    /// Hardware address of who sends it.
    pub sender_hardware: [u8; 6],
    /// Its IPv4 address.
    pub sender: [u8; 4],
    /// Hardware address of whom it is for; zero in a request.
    pub target_hardware: [u8; 6],
    /// Its IPv4 address.
    pub target: [u8; 4],
}

/// Who has this address?
pub const REQUEST: u16 = 1;
/// I have it.
pub const REPLY: u16 = 2;

/// Reads an Ethernet header.
#[must_use]
#[inline(always)]
pub const fn ethernet(b: &[u8; ETHERNET_BYTES]) -> Ethernet {
    Ethernet {
        to: [b[0], b[1], b[2], b[3], b[4], b[5]],
        from: [b[6], b[7], b[8], b[9], b[10], b[11]],
        kind: u16::from_be_bytes([b[12], b[13]]),
    }
}

/// Reads the IPv4 header of a TCP segment: none for options (source routes are among them), fragments, and every other
/// protocol.
#[must_use]
#[inline(always)]
pub const fn ipv4(b: &[u8; IPV4_BYTES]) -> Option<Ipv4> {
    const VERSION_4_WITHOUT_OPTIONS: u8 = 0x45;
    /// "More fragments" and the offset; what is left is "do not fragment" and a reserved bit, which must be 0.
    const FRAGMENT: u16 = 0xbfff;
    const TCP: u8 = 6;
    let whole = u16::from_be_bytes([b[6], b[7]]) & FRAGMENT == 0;
    if b[0] != VERSION_4_WITHOUT_OPTIONS || !whole || b[9] != TCP {
        return None;
    }
    Some(Ipv4 {
        from: [b[12], b[13], b[14], b[15]],
        to: [b[16], b[17], b[18], b[19]],
        length: u16::from_be_bytes([b[2], b[3]]),
    })
}

/// Reads the first bytes of a TCP header.
#[must_use]
#[inline(always)]
pub const fn tcp(b: &[u8; TCP_BYTES]) -> Tcp {
    Tcp {
        from: u16::from_be_bytes([b[0], b[1]]),
        to: u16::from_be_bytes([b[2], b[3]]),
        flags: b[13],
    }
}

/// Reads an ARP message: none for any other hardware and protocol than Ethernet and IPv4.
#[must_use]
#[inline(always)]
pub const fn arp(b: &[u8; ARP_BYTES]) -> Option<Arp> {
    let is_ethernet = b[0] == 0 && b[1] == 1 && b[4] == 6;
    let is_ipv4 = b[2] == 8 && b[3] == 0 && b[5] == 4;
    if !is_ethernet || !is_ipv4 {
        return None;
    }
    Some(Arp {
        operation: u16::from_be_bytes([b[6], b[7]]),
        sender_hardware: [b[8], b[9], b[10], b[11], b[12], b[13]],
        sender: [b[14], b[15], b[16], b[17]],
        target_hardware: [b[18], b[19], b[20], b[21], b[22], b[23]],
        target: [b[24], b[25], b[26], b[27]],
    })
}

/// Whether a frame's Ethernet header is the workload's own: nobody else's address as the sender, nobody but one
/// receiver unless `broadcast`.
#[must_use]
#[inline(always)]
pub fn is_addressed(
    frame: Ethernet,
    device: Device,
    direction: Direction,
    broadcast: bool,
) -> bool {
    const GROUP: u8 = 1;
    let (own, other) = match direction {
        Direction::Out => (frame.from, frame.to),
        Direction::In => (frame.to, frame.from),
    };
    match direction {
        Direction::Out => {
            let receiver = other[0] & GROUP == 0 || (broadcast && other == BROADCAST);
            own == device.hardware && receiver
        }
        Direction::In => own == device.hardware || (broadcast && own == BROADCAST),
    }
}

/// Whether the frame is as long as its packet says: nothing stands behind it, except what hardware fills up with on
/// the way in.
#[must_use]
#[inline(always)]
pub const fn has_length(frame: u32, packet: u16, direction: Direction) -> bool {
    const HEADER: u32 = 14;
    let exact = HEADER + packet as u32;
    match direction {
        Direction::Out => frame == exact,
        Direction::In => frame == exact || (frame > exact && frame == SHORTEST_FRAME),
    }
}

/// What is known of a segment's ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// The near address is the workload's own.
    pub is_own: bool,
    /// The far address and port are those of a neighbour.
    pub is_neighbour: bool,
    /// The near port is open to connections that come in.
    pub is_published: bool,
    /// The connection has come in and lives, and the frame goes where it came from.
    pub has_come_in: bool,
}

/// What becomes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It goes no further.
    Drop,
    /// It goes on.
    Pass,
    /// It goes on, and begins a connection that comes in.
    Begin,
    /// It goes on in a connection that came in.
    Continue,
    /// It goes on, and ends its side of a connection that came in.
    Finish,
    /// It goes on, and ends a connection that came in.
    Reset,
}

/// Decides about a TCP segment.
#[must_use]
#[inline(always)]
pub const fn segment(direction: Direction, flags: u8, ends: Ends) -> Verdict {
    let begins = flags & (SYN | ACK | RST | FIN) == SYN;
    // Every segment after the first has ACK, except a reset of something unknown.
    let follows = flags & (ACK | RST) != 0;
    if !ends.is_own || (!begins && !follows) {
        return Verdict::Drop;
    }
    let out = matches!(direction, Direction::Out);
    if ends.is_published && begins && !out {
        return Verdict::Begin;
    }
    if ends.is_published && ends.has_come_in && follows {
        return if flags & RST != 0 {
            Verdict::Reset
        } else if flags & FIN != 0 {
            Verdict::Finish
        } else {
            Verdict::Continue
        };
    }
    if ends.is_neighbour && (out || follows) {
        return Verdict::Pass;
    }
    Verdict::Drop
}

/// How long a connection that came in may be silent from outside until the workload may send into it no more: longer
/// than servers usually wait for their clients.
pub const IDLE_NS: u64 = 3_600 * 1_000_000_000;
/// The same when both sides have ended it: what is left is the last acknowledgement.
pub const ENDING_NS: u64 = 60 * 1_000_000_000;
/// Both sides have ended it.
pub const BOTH_ENDED: u8 = 3;
/// One side has reset it.
pub const RESET: u8 = 4;

/// Whether a segment in this direction belongs to a connection that lives: `silent_ns` since the last segment from
/// outside. After a reset nothing goes out; what comes in is still delivered for a while, the reset itself before all.
#[must_use]
#[inline(always)]
pub const fn lives(direction: Direction, silent_ns: u64, ended: u8) -> bool {
    if ended & RESET != 0 {
        return matches!(direction, Direction::In) && silent_ns < ENDING_NS;
    }
    silent_ns < if ended == BOTH_ENDED { ENDING_NS } else { IDLE_NS }
}

/// The bit of [`BOTH_ENDED`] for a side.
#[must_use]
#[inline(always)]
pub const fn side(direction: Direction) -> u8 {
    match direction {
        Direction::Out => 1,
        Direction::In => 2,
    }
}

/// What is known of the addresses in an ARP message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArpEnds {
    /// The near address is the workload's own.
    pub is_own: bool,
    /// The far address is in the network of a neighbour.
    pub is_neighbour: bool,
    /// The far address has spoken to the workload.
    pub has_spoken: bool,
}

/// Whether an ARP message is let through.
#[must_use]
#[inline(always)]
pub fn arp_passes(
    direction: Direction,
    frame: Ethernet,
    arp: Arp,
    device: Device,
    ends: ArpEnds,
) -> bool {
    const NOBODY: [u8; 6] = [0; 6];
    let is_request = arp.operation == REQUEST;
    if !ends.is_own || !(is_request || arp.operation == REPLY) || arp.sender == arp.target {
        return false;
    }
    if arp.sender_hardware != frame.from || arp.sender_hardware[0] & 1 != 0 {
        return false;
    }
    let known = ends.is_neighbour || ends.has_spoken;
    match direction {
        Direction::Out if is_request => {
            known && arp.sender_hardware == device.hardware && arp.target_hardware == NOBODY
        }
        Direction::Out => {
            known && arp.sender_hardware == device.hardware && arp.target_hardware == frame.to
        }
        Direction::In if is_request => known || device.flags & HAS_INBOUND != 0,
        Direction::In => known && arp.target_hardware == device.hardware,
    }
}

#[cfg(test)]
mod tests;
