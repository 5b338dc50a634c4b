//! sock_create: only TCP and UDP sockets come into being. post_bind4/6: the gateway's ports are the gateway's.
//!
//! Why sock_create: ping, UDP-Lite, raw, SCTP and MPTCP sockets send without a hook of their own on the way. What it
//! cannot see: families other than inet (AF_PACKET, AF_XDP, AF_VSOCK), and sockets made in another cgroup.
//!
//! Why post_bind and not bind: it sees the port that the kernel really chose. Without it a process could take the
//! gateway's place for its neighbours while the gateway is down.

use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::programs::SockContext;
use aya_log_ebpf::debug;
use gateway_ebpf::decide;

use crate::maps::WORKLOADS;
use crate::sockaddr::Fields;
use crate::{PASS, REFUSE, event};

#[inline(always)]
pub(crate) fn create(ctx: &SockContext) -> i32 {
    let (family, kind, protocol) = asked_for(ctx);
    if decide::socket_is_allowed(family, kind, protocol) {
        return PASS;
    }
    debug!(ctx, "socket refused: family={} type={} protocol={}", family, kind, protocol);
    event::refused_socket(family, kind, protocol);
    unsafe { bpf_set_retval(-decide::EPROTONOSUPPORT) };
    REFUSE
}

/// Whether a socket of this kind may be made at all.
#[inline(always)]
pub(crate) fn is_allowed(ctx: &SockContext) -> bool {
    let (family, kind, protocol) = asked_for(ctx);
    decide::socket_is_allowed(family, kind, protocol)
}

/// Family, type and protocol of the socket that is to be made.
#[inline(always)]
fn asked_for(ctx: &SockContext) -> (u32, u32, u32) {
    let family = unsafe { read_volatile(&raw const (*ctx.sock).family) };
    let kind = unsafe { read_volatile(&raw const (*ctx.sock).type_) };
    let protocol = unsafe { read_volatile(&raw const (*ctx.sock).protocol) };
    (family, kind, protocol)
}

#[inline(always)]
pub(crate) fn post_bind(ctx: &SockContext, fields: Fields) -> i32 {
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let Some(workload) = (unsafe { WORKLOADS.get(cookie) }) else {
        // A namespace that is not armed reaches nothing anyway; its own loopback servers are no danger to anyone.
        return PASS;
    };
    let port = unsafe { read_volatile(&raw const (*ctx.sock).src_port) };
    if port != u32::from(workload.gateway_port) {
        return PASS;
    }
    event::refused_bind(ctx, fields, workload.gateway_port);
    REFUSE
}
