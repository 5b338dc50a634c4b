//! cgroup_skb egress and ingress: the device must be loopback, or a fenced wire that lets this very segment through.
//!
//! Why the device and not the address: packets to 127.0.0.1 can be sent out of another interface (packet info, unicast
//! interface, binding to a device after connect). What it cannot see: AF_PACKET, AF_XDP, frames that the kernel makes
//! by itself (resets, IGMP, MLD), and sockets of another cgroup; the fence at the host's end of the wire closes those.

use aya_ebpf::programs::SkBuffContext;
use gateway_ebpf::frame::Direction;

use crate::wire;

#[inline(always)]
pub(crate) fn egress(ctx: &SkBuffContext) -> i32 {
    wire::packet(ctx, Direction::Out)
}

#[inline(always)]
pub(crate) fn ingress(ctx: &SkBuffContext) -> i32 {
    wire::packet(ctx, Direction::In)
}
