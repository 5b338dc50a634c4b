//! tc at the host's end of a workload's wire, both directions: closed but for what the operator has opened.
//!
//! Why at the host's end: what the workload sends through AF_PACKET or AF_XDP passes no hook of its own side, and what
//! the kernel sends by itself has no socket. Here every frame passes, whoever made it. What it cannot see: an XDP
//! program that the operator attaches to the same device takes frames before it.

use core::ptr::read_volatile;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::sk_buff::SkBuff;
use aya_ebpf::programs::{SkBuffContext, TcContext};
use gateway_ebpf::abi::{
    Address, Arrival, ArrivalKey, Device, Hardware, LOOPBACK_IFINDEX, REFUSED_FENCE_EGRESS,
    REFUSED_FENCE_INGRESS, REFUSED_WIRE_IN, REFUSED_WIRE_OUT,
};
use gateway_ebpf::frame::{
    self, ARP_BYTES, ArpEnds, Direction, ETHERNET_BYTES, Ends, Ethernet, Ipv4, SHORTEST_FRAME,
    Verdict,
};

use crate::maps::{ARRIVALS, DEVICES, INSIDE, NEIGHBOUR_HARDWARE, PUBLISHED, is_neighbour, is_own};
use crate::{PASS, REFUSE, event};

/// tc's verdict: this program has no objection (`TC_ACT_UNSPEC`, `TCX_NEXT`).
const NEXT: i32 = -1;
/// tc's verdict: the frame goes no further (`TC_ACT_SHOT`, `TCX_DROP`).
const SHOT: i32 = 2;

/// A frame at the host's end of a wire.
#[inline(always)]
pub(crate) fn frame(ctx: &TcContext, direction: Direction) -> i32 {
    if passes(&ctx.skb, direction).is_some() { NEXT } else { dropped(ctx, direction) }
}

/// Every frame that a wire does not let through ends here.
#[inline(always)]
fn dropped(ctx: &TcContext, direction: Direction) -> i32 {
    let raw: *mut __sk_buff = ctx.skb.skb;
    let why = match direction {
        Direction::Out => REFUSED_WIRE_OUT,
        Direction::In => REFUSED_WIRE_IN,
    };
    event::refused_packet(raw, unsafe { read_volatile(&raw const (*raw).ifindex) }, why);
    SHOT
}

/// A packet of a socket of the workload, at the workload's own end.
#[inline(always)]
pub(crate) fn packet(ctx: &SkBuffContext, direction: Direction) -> i32 {
    let device = unsafe { read_volatile(&raw const (*ctx.skb.skb).ifindex) };
    if device == LOOPBACK_IFINDEX {
        return PASS;
    }
    if passes_inside(ctx, device, direction) {
        return PASS;
    }
    let why = match direction {
        Direction::Out => REFUSED_FENCE_EGRESS,
        Direction::In => REFUSED_FENCE_INGRESS,
    };
    event::refused_packet(ctx.skb.skb, device, why);
    REFUSE
}

#[inline(always)]
fn passes_inside(ctx: &SkBuffContext, device: u32, direction: Direction) -> bool {
    // Only interfaces whose other end is fenced have an entry.
    if unsafe { INSIDE.get(device) }.is_none() {
        return false;
    }
    !matches!(segment(&ctx.skb, 0, direction), Some((_, _, Verdict::Drop)) | None)
}

#[inline(always)]
fn passes(skb: &SkBuff, direction: Direction) -> Option<()> {
    let raw: *mut __sk_buff = skb.skb;
    let index = unsafe { read_volatile(&raw const (*raw).ifindex) };
    let device = *unsafe { DEVICES.get(index) }?;
    if device.flags == 0 || unsafe { read_volatile(&raw const (*raw).vlan_present) } != 0 {
        return None;
    }
    let ethernet = frame::ethernet(&skb.load::<[u8; ETHERNET_BYTES]>(0).ok()?);
    match ethernet.kind {
        frame::IPV4 => tcp_passes(skb, direction, device, ethernet),
        frame::ARP => arp_passes(skb, direction, device, ethernet),
        _other => None,
    }
}

#[inline(always)]
fn tcp_passes(
    skb: &SkBuff,
    direction: Direction,
    device: Device,
    ethernet: Ethernet,
) -> Option<()> {
    if !frame::is_addressed(ethernet, device, direction, false) {
        return None;
    }
    let (ip, key, verdict) = segment(skb, ETHERNET_BYTES, direction)?;
    if !frame::has_length(skb.len(), ip.length, direction) {
        return None;
    }
    match verdict {
        Verdict::Drop => return None,
        Verdict::Pass => return is_neighbours_own(ip, ethernet, direction),
        Verdict::Begin => {
            let arrival = Arrival {
                heard_ns: unsafe { bpf_ktime_get_ns() },
                hardware: ethernet.from,
                ended: 0,
                pad: 0,
            };
            ARRIVALS.insert(key, arrival, 0).ok()?;
            // The answer may have to ask who has the address.
            spoke(ip.from, ethernet.from)?;
        }
        Verdict::Continue => heard(key, ethernet, direction, 0)?,
        Verdict::Finish => heard(key, ethernet, direction, frame::side(direction))?,
        Verdict::Reset => heard(key, ethernet, direction, frame::RESET)?,
    }
    Some(())
}

/// Reads a segment whose IPv4 header stands at `offset`, and decides about it.
#[inline(always)]
fn segment(
    skb: &SkBuff,
    offset: usize,
    direction: Direction,
) -> Option<(Ipv4, ArrivalKey, Verdict)> {
    let ip = frame::ipv4(&skb.load::<[u8; frame::IPV4_BYTES]>(offset).ok()?)?;
    let tcp = frame::tcp(&skb.load::<[u8; frame::TCP_BYTES]>(offset + frame::IPV4_BYTES).ok()?);
    let (near, near_port, far, far_port) = match direction {
        Direction::Out => (ip.from, tcp.from, ip.to, tcp.to),
        Direction::In => (ip.to, tcp.to, ip.from, tcp.from),
    };
    let key = ArrivalKey { far, near, far_port, near_port };
    let is_published = unsafe { PUBLISHED.get(u32::from(near_port)) }.is_some();
    let ends = Ends {
        is_own: is_own(Address::from_v4_be(u32::from_ne_bytes(near))),
        is_neighbour: far_port != 0 && is_neighbour(far, far_port),
        is_published,
        has_come_in: is_published && lives(key, direction),
    };
    Some((ip, key, frame::segment(direction, tcp.flags, ends)))
}

#[inline(always)]
fn lives(key: ArrivalKey, direction: Direction) -> bool {
    let Some(arrival) = (unsafe { ARRIVALS.get(key) }) else { return false };
    let silent = unsafe { bpf_ktime_get_ns() }.saturating_sub(arrival.heard_ns);
    frame::lives(direction, silent, arrival.ended)
}

/// Notes a segment of a connection that came in; none where it goes to another machine than it came from.
#[inline(always)]
fn heard(key: ArrivalKey, ethernet: Ethernet, direction: Direction, ended: u8) -> Option<()> {
    let slot = ARRIVALS.get_ptr_mut(key)?;
    match direction {
        Direction::Out if unsafe { (*slot).hardware } != ethernet.to => return None,
        Direction::Out => {}
        Direction::In => unsafe {
            (*slot).heard_ns = bpf_ktime_get_ns();
            (*slot).hardware = ethernet.from;
        },
    }
    unsafe { (*slot).ended |= ended };
    Some(())
}

/// A segment to a neighbour goes to the machine that has said it has the address, and to no other on the wire.
#[inline(always)]
fn is_neighbours_own(ip: Ipv4, ethernet: Ethernet, direction: Direction) -> Option<()> {
    match direction {
        Direction::In => Some(()),
        Direction::Out => {
            let hardware = unsafe { NEIGHBOUR_HARDWARE.get(ip.to) }?;
            (hardware.octets == ethernet.to).then_some(())
        }
    }
}

#[inline(always)]
fn arp_passes(
    skb: &SkBuff,
    direction: Direction,
    device: Device,
    ethernet: Ethernet,
) -> Option<()> {
    const EXACT: u32 = (ETHERNET_BYTES + ARP_BYTES) as u32;
    let length = skb.len();
    let filled_up = direction == Direction::In && length == SHORTEST_FRAME;
    if length != EXACT && !filled_up {
        return None;
    }
    if !frame::is_addressed(ethernet, device, direction, true) {
        return None;
    }
    let arp = frame::arp(&skb.load::<[u8; ARP_BYTES]>(ETHERNET_BYTES).ok()?)?;
    let (near, far) = match direction {
        Direction::Out => (arp.sender, arp.target),
        Direction::In => (arp.target, arp.sender),
    };
    let ends = ArpEnds {
        is_own: is_own(Address::from_v4_be(u32::from_ne_bytes(near))),
        // Port 0 stands for the address alone.
        is_neighbour: is_neighbour(far, 0),
        has_spoken: unsafe { NEIGHBOUR_HARDWARE.get(far) }.is_some(),
    };
    if !frame::arp_passes(direction, ethernet, arp, device, ends) {
        return None;
    }
    if direction == Direction::In {
        spoke(far, arp.sender_hardware)?;
    }
    Some(())
}

/// Notes which machine an address is on.
#[inline(always)]
fn spoke(address: [u8; 4], octets: [u8; 6]) -> Option<()> {
    NEIGHBOUR_HARDWARE.insert(address, Hardware { octets, pad: 0 }, 0).ok()
}
