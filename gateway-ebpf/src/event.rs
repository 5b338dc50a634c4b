//! Refusals on their way to the audit. Losing one (a full buffer) changes nothing about the refusal.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::programs::SockAddrContext;
use gateway_ebpf::abi::{Address, REFUSED_SOCKET, Refusal};

use crate::maps::REFUSALS;
use crate::sockaddr;

#[inline(always)]
pub(crate) fn refused_destination(ctx: &SockAddrContext, address: Address, port: u16, why: u16) {
    emit(Refusal {
        address,
        port,
        why,
        family: sockaddr::family(ctx) as u16,
        kind: sockaddr::socket_kind(ctx) as u16,
        protocol: sockaddr::protocol(ctx),
        pid: 0,
        comm: [0; 16],
    });
}

#[inline(always)]
pub(crate) fn refused_socket(family: u32, kind: u32, protocol: u32) {
    emit(Refusal {
        address: Address::NONE,
        port: 0,
        why: REFUSED_SOCKET,
        family: family as u16,
        kind: kind as u16,
        protocol,
        pid: 0,
        comm: [0; 16],
    });
}

#[inline(always)]
fn emit(mut refusal: Refusal) {
    refusal.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    refusal.comm = bpf_get_current_comm().unwrap_or([0; 16]);
    // An error means that the buffer is full; there is nobody to tell.
    let _full = REFUSALS.output(refusal, 0);
}
