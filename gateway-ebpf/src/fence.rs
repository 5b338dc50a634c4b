//! cgroup_skb egress and ingress: the device must be loopback, or a fenced wire that lets this very segment through.
//!
//! Why the device and not the address: packets to 127.0.0.1 can be sent out of another interface (packet info, unicast
//! interface, binding to a device after connect). What it cannot see: AF_PACKET, AF_XDP, frames that the kernel makes
//! by itself (resets, IGMP, MLD), and sockets of another cgroup; the fence at the host's end of the wire closes those.
//!
//! Egress also counts the datagrams of connected sockets to the gateway (see [`rate`]).
//!
//! Ingress also keeps the gateway's place free: a socket of the workload that has the gateway's port hears nothing.
//! Why here and not only in post_bind: a socket that listens or sends without a bind gets its port past that hook,
//! and can narrow the range it is chosen from to one port (IP_LOCAL_PORT_RANGE).

use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::programs::SkBuffContext;
use gateway_ebpf::abi::{ANY_NAMESPACE, LOOPBACK_IFINDEX, REFUSED_GATEWAY_PORT_BIND, REFUSED_RATE};
use gateway_ebpf::frame::Direction;

use crate::maps::WORKLOADS;
use crate::{REFUSE, event, rate, wire};

#[inline(always)]
pub(crate) fn egress(ctx: &SkBuffContext) -> i32 {
    if rate::is_too_much(ctx) {
        event::refused_packet(ctx.skb.skb, LOOPBACK_IFINDEX, REFUSED_RATE);
        return REFUSE;
    }
    wire::packet(ctx, Direction::Out)
}

#[inline(always)]
pub(crate) fn ingress(ctx: &SkBuffContext) -> i32 {
    if has_gateway_port(ctx) {
        event::refused_packet(ctx.skb.skb, LOOPBACK_IFINDEX, REFUSED_GATEWAY_PORT_BIND);
        return REFUSE;
    }
    wire::packet(ctx, Direction::In)
}

/// Whether the socket that a packet is for has the gateway's port. The gateway's own sockets are of another cgroup.
#[inline(always)]
fn has_gateway_port(ctx: &SkBuffContext) -> bool {
    // SAFETY of both reads: the verifier knows the field as a socket or null, and the helper's result likewise.
    let socket = unsafe { read_volatile(&raw const (*ctx.skb.skb).__bindgen_anon_2.sk) };
    if socket.is_null() {
        return false;
    }
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return false;
    }
    let port = unsafe { read_volatile(&raw const (*socket).src_port) };
    match unsafe { WORKLOADS.get(ANY_NAMESPACE) } {
        Some(workload) => port == u32::from(workload.gateway_port),
        None => false,
    }
}
