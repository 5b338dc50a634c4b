//! recvmsg4/6 and getpeername4/6: the socket sees the peer that it asked for, not the gateway.
//!
//! For compatibility, not for secrecy: resolvers drop answers whose source is not the server they asked.
//! `/proc/net/tcp` and sock_diag still show the real tuple.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;
use gateway_ebpf::abi::{Address, REDIRECTED};

use crate::maps::{self, WORKLOADS};
use crate::sockaddr::{self, Fields};

#[inline(always)]
pub(crate) fn restore(ctx: &SockAddrContext, fields: Fields) {
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let Some(workload) = (unsafe { WORKLOADS.get(cookie) }) else { return };
    let peer = sockaddr::address(ctx, fields);
    let from_gateway = sockaddr::port(ctx) == workload.gateway_port
        && (peer == Address::LOOPBACK_V4 || peer == Address::LOOPBACK_V6);
    if !from_gateway {
        return;
    }
    let slot = maps::original_of(sockaddr::socket(ctx), false);
    if slot.is_null() {
        return;
    }
    let (state, address, port) = unsafe { ((*slot).state, (*slot).address, (*slot).port) };
    if state == REDIRECTED {
        sockaddr::set(ctx, fields, address, port);
    }
}
