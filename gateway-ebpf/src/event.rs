//! Refusals on their way to the audit: each is written as an event or counted, whatever happens.
//!
//! A flood costs one look-up, one clock reading and one addition per refusal; past the limit of its class nothing else
//! is read, written or woken. What the programs let pass never comes here.

use core::arch::asm;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::Global;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_boot_ns, bpf_skb_cgroup_id, bpf_skb_load_bytes_relative,
};
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use gateway_ebpf::abi::{
    Address, EVENTS_PER_WINDOW, Original, REFUSED_FENCE_EGRESS, REFUSED_FLOWS_FULL,
    REFUSED_GATEWAY_PORT_BIND, REFUSED_RATE, REFUSED_SOCKET, Refusal, TALLY_WINDOW_SHIFT, Tally,
};
use gateway_ebpf::decide;

use crate::maps::{REFUSALS, TALLIES};
use crate::sockaddr::{self, Fields};

/// Whether the fence may ask which process runs. The gateway says so where the kernel has the helpers for it; without,
/// the verifier never sees the branch.
#[unsafe(no_mangle)]
static FENCE_SEES_PROCESSES: Global<u8> = Global::new(0);

/// A connect or datagram that was refused.
#[inline(always)]
pub(crate) fn refused_destination(ctx: &SockAddrContext, address: Address, port: u16, why: u16) {
    let Some(mut refusal) = admitted(why) else { return };
    refusal.address = address;
    refusal.port = port;
    refusal.family = sockaddr::family(ctx) as u16;
    refusal.kind = sockaddr::socket_kind(ctx) as u16;
    refusal.protocol = sockaddr::protocol(ctx);
    refusal.device = unsafe { read_volatile(&raw const (*sockaddr::socket(ctx)).bound_dev_if) };
    name_task(&mut refusal);
    send(&refusal);
}

/// A socket that was not made.
#[inline(always)]
pub(crate) fn refused_socket(family: u32, kind: u32, protocol: u32) {
    let Some(mut refusal) = admitted(REFUSED_SOCKET) else { return };
    refusal.family = family as u16;
    refusal.kind = kind as u16;
    refusal.protocol = protocol;
    name_task(&mut refusal);
    send(&refusal);
}

/// A socket that was not bound to the gateway's port.
#[inline(always)]
pub(crate) fn refused_bind(ctx: &SockContext, fields: Fields, port: u16) {
    let Some(mut refusal) = admitted(REFUSED_GATEWAY_PORT_BIND) else { return };
    refusal.address = if fields == Fields::V6 {
        let words = unsafe { &raw const (*ctx.sock).src_ip6 }.cast::<u32>();
        Address {
            words_be: unsafe {
                [
                    read_volatile(words),
                    read_volatile(words.add(1)),
                    read_volatile(words.add(2)),
                    read_volatile(words.add(3)),
                ]
            },
        }
    } else {
        Address::from_v4_be(unsafe { read_volatile(&raw const (*ctx.sock).src_ip4) })
    };
    refusal.port = port;
    refusal.family = unsafe { read_volatile(&raw const (*ctx.sock).family) } as u16;
    refusal.kind = unsafe { read_volatile(&raw const (*ctx.sock).type_) } as u16;
    refusal.protocol = unsafe { read_volatile(&raw const (*ctx.sock).protocol) };
    name_task(&mut refusal);
    send(&refusal);
}

/// A connection that nobody can find the destination of. The hook cannot ask for the task; connect has asked.
#[inline(always)]
pub(crate) fn refused_flow(original: &Original) {
    let Some(mut refusal) = admitted(REFUSED_FLOWS_FULL) else { return };
    refusal.address = original.address;
    refusal.port = original.port;
    refusal.protocol = decide::TCP;
    refusal.pid = original.pid;
    refusal.cgroup_id = original.cgroup_id;
    refusal.comm = original.comm;
    send(&refusal);
}

/// A packet that was dropped.
///
/// A function of its own, so that a packet that passes does not pay for it: what is inlined here would make the programs
/// save registers and lay out a stack before they look at the device.
#[inline(never)]
pub(crate) fn refused_packet(skb: *mut __sk_buff, device: u32, why: u16) {
    let Some(mut refusal) = admitted(why) else { return };
    refusal.device = device;
    refusal.ethertype = u16::from_be(unsafe { read_volatile(&raw const (*skb).protocol) } as u16);
    match refusal.ethertype {
        ETH_P_IP => read_v4(skb, &mut refusal),
        ETH_P_IPV6 => read_v6(skb, &mut refusal),
        _ => {}
    }
    if why == REFUSED_FENCE_EGRESS || why == REFUSED_RATE {
        refusal.cgroup_id = unsafe { bpf_skb_cgroup_id(skb) };
        // Who runs is who sends only where both are of one cgroup: timers and interrupts borrow whatever task there is.
        if FENCE_SEES_PROCESSES.load() != 0
            && refusal.cgroup_id == unsafe { bpf_get_current_cgroup_id() }
        {
            name_task(&mut refusal);
        }
    }
    send(&refusal);
}

/// `enum bpf_hdr_start_off`: offsets count from the network header.
const BPF_HDR_START_NET: u32 = 1;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// A new event of the class `why`, unless its window is used up; then the refusal is counted.
#[inline(always)]
fn admitted(why: u16) -> Option<Refusal> {
    let tally = TALLIES.get_ptr_mut(u32::from(why))?;
    let at_ns = unsafe { bpf_ktime_get_boot_ns() };
    let window = at_ns >> TALLY_WINDOW_SHIFT;
    // Two processors that begin a window at once may admit a few more than the limit; no refusal goes uncounted.
    unsafe {
        if read_volatile(&raw const (*tally).window) != window {
            write_volatile(&raw mut (*tally).window, window);
            write_volatile(&raw mut (*tally).taken, 0);
        }
        if read_volatile(&raw const (*tally).taken) >= EVENTS_PER_WINDOW {
            add_one(&raw mut (*tally).suppressed);
            return None;
        }
        add_one(&raw mut (*tally).taken);
    }
    Some(Refusal {
        cgroup_id: 0,
        at_ns,
        address: Address::NONE,
        source: Address::NONE,
        comm: [0; 16],
        pid: 0,
        device: 0,
        protocol: 0,
        port: 0,
        source_port: 0,
        why,
        family: 0,
        kind: 0,
        ethertype: 0,
    })
}

#[inline(always)]
fn send(refusal: &Refusal) {
    if REFUSALS.output(refusal, 0).is_err()
        && let Some(tally) = TALLIES.get_ptr_mut(u32::from(refusal.why))
    {
        let tally: *mut Tally = tally;
        unsafe { add_one(&raw mut (*tally).lost) };
    }
}

#[inline(always)]
fn name_task(refusal: &mut Refusal) {
    refusal.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    refusal.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    refusal.comm = bpf_get_current_comm().unwrap_or([0; 16]);
}

#[inline(always)]
fn read_v4(skb: *mut __sk_buff, refusal: &mut Refusal) {
    let mut header = [0_u32; 5];
    if !read(skb, 0, &mut header) {
        return;
    }
    let octets = header[0].to_ne_bytes();
    let fragment = u32::from_be(header[1]) & 0x1fff;
    refusal.protocol = u32::from(header[2].to_ne_bytes()[1]);
    refusal.source = Address::from_v4_be(header[3]);
    refusal.address = Address::from_v4_be(header[4]);
    // Only the first fragment has ports.
    if fragment == 0 {
        read_ports(skb, u32::from(octets[0] & 0x0f) * 4, refusal);
    }
}

#[inline(always)]
fn read_v6(skb: *mut __sk_buff, refusal: &mut Refusal) {
    let mut header = [0_u32; 10];
    if !read(skb, 0, &mut header) {
        return;
    }
    // The next header; behind extension headers there may be another protocol, whose ports are not looked for.
    refusal.protocol = u32::from(header[1].to_ne_bytes()[2]);
    refusal.source = Address { words_be: [header[2], header[3], header[4], header[5]] };
    refusal.address = Address { words_be: [header[6], header[7], header[8], header[9]] };
    read_ports(skb, 40, refusal);
}

#[inline(always)]
fn read_ports(skb: *mut __sk_buff, offset: u32, refusal: &mut Refusal) {
    const SCTP: u32 = 132;
    const UDP_LITE: u32 = 136;
    if !matches!(refusal.protocol, decide::TCP | decide::UDP | SCTP | UDP_LITE) {
        return;
    }
    let mut ports = [0_u32; 1];
    if read(skb, offset, &mut ports) {
        let octets = ports[0].to_ne_bytes();
        refusal.source_port = u16::from_be_bytes([octets[0], octets[1]]);
        refusal.port = u16::from_be_bytes([octets[2], octets[3]]);
    }
}

/// Reads from the network header on; false where the packet is shorter.
#[inline(always)]
fn read<const WORDS: usize>(skb: *mut __sk_buff, offset: u32, into: &mut [u32; WORDS]) -> bool {
    let (to, length) = (into.as_mut_ptr().cast(), (WORDS * 4) as u32);
    unsafe { bpf_skb_load_bytes_relative(skb.cast(), offset, to, length, BPF_HDR_START_NET) == 0 }
}

#[inline(always)]
unsafe fn add_one(counter: *mut u64) {
    unsafe { add(counter, 1) }
}

/// Adds as a whole, whatever other processors do meanwhile: the language has no such operation for this target.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, more: u64) {
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {more}", counter = in(reg) counter, more = in(reg) more);
    }
}
