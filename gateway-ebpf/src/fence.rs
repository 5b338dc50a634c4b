//! cgroup_skb egress and ingress: the device must be loopback.
//!
//! Why the device and not the address: packets to 127.0.0.1 can be sent out of another interface (packet info, unicast
//! interface, binding to a device after connect). What it cannot see: AF_PACKET, AF_XDP, frames that the kernel makes
//! by itself (resets, IGMP, MLD), and sockets of another cgroup; a namespace with no interface but `lo` closes those.

use core::ptr::read_volatile;

use aya_ebpf::programs::SkBuffContext;
use gateway_ebpf::abi::LOOPBACK_IFINDEX;

use crate::{PASS, REFUSE, event};

/// `why` is the class of what is refused.
#[inline(always)]
pub(crate) fn loopback_only(ctx: &SkBuffContext, why: u16) -> i32 {
    let device = unsafe { read_volatile(&raw const (*ctx.skb.skb).ifindex) };
    if device == LOOPBACK_IFINDEX {
        return PASS;
    }
    event::refused_packet(ctx.skb.skb, device, why);
    REFUSE
}
