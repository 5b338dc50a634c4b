//! connect4/6 and sendmsg4/6: every destination becomes the gateway's listener, stays local, or is refused.
//!
//! Why these hooks: they run under the socket lock before routing and before a source port exists, so the address can
//! still be replaced; io_uring, Fast Open and reconnects pass through them too. What they cannot see: the output
//! device (packet info, unicast interface, binding to a device afterwards), source routes, and every socket family
//! without a `pre_connect` of its own. The fence and the socket allow-list close those.

use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
};
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use gateway_ebpf::abi::{
    Address, LOOPBACK_IFINDEX, NOT_REDIRECTED, Original, REDIRECTED, REFUSED_DEVICE,
    REFUSED_GATEWAY_PORT, REFUSED_RATE, REFUSED_STORAGE, REFUSED_UDP, REFUSED_UNKNOWN_NAMESPACE,
};
use gateway_ebpf::decide::{self, Action, Place};

use crate::maps::{self, WORKLOADS};
use crate::sockaddr::{self, Fields};
use crate::{PASS, event, rate};

/// Which of its hooks a program serves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Connect,
    Send,
}

/// Why a destination was refused: errno and `REFUSED_*` code.
struct Refused(i32, u16);

#[inline(always)]
pub(crate) fn redirect(ctx: &SockAddrContext, fields: Fields, hook: Hook) -> Result<i32, i32> {
    let address = sockaddr::address(ctx, fields);
    let port = sockaddr::port(ctx);
    match try_redirect(ctx, fields, hook, address, port) {
        Ok(()) => Ok(PASS),
        Err(Refused(errno, why)) => {
            debug!(ctx, "destination refused: why={} port={}", why, port);
            // A UDP connect sends nothing, and C libraries make one per address to sort what a name resolves to: an
            // event for each would bury those that matter. A datagram that is sent is one that matters.
            if hook == Hook::Send || why != REFUSED_UDP {
                event::refused_destination(ctx, address, port, why);
            }
            unsafe { bpf_set_retval(-errno) };
            Err(errno)
        }
    }
}

#[inline(always)]
fn try_redirect(
    ctx: &SockAddrContext,
    fields: Fields,
    hook: Hook,
    address: Address,
    port: u16,
) -> Result<(), Refused> {
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY of the copy: entries are written whole by user space and are never updated in place.
    let workload = match unsafe { WORKLOADS.get(cookie) } {
        Some(workload) => *workload,
        None => return Err(Refused(decide::ECONNREFUSED, REFUSED_UNKNOWN_NAMESPACE)),
    };
    let device = unsafe { read_volatile(&raw const (*sockaddr::socket(ctx)).bound_dev_if) };
    if device != 0 && device != LOOPBACK_IFINDEX {
        return Err(Refused(decide::EPERM, REFUSED_DEVICE));
    }
    let place = place_of(address, port);
    match decide::destination(workload, sockaddr::protocol(ctx), address, port, place) {
        Action::Local | Action::Neighbour => {
            forget(ctx);
            Ok(())
        }
        Action::Redirect(listener) => {
            if !rate::admits(ctx, hook) {
                return Err(Refused(decide::ECONNREFUSED, REFUSED_RATE));
            }
            remember(ctx, address, port)?;
            sockaddr::set(ctx, fields, listener, workload.gateway_port);
            Ok(())
        }
        // A datagram socket of IPv6 that is connected to a v4-mapped address comes here with each datagram, as if the
        // process had named the address that it was redirected to.
        Action::Refuse(_, REFUSED_GATEWAY_PORT) if hook == Hook::Send && is_redirected(ctx) => {
            Ok(())
        }
        Action::Refuse(errno, why) => Err(Refused(errno, why)),
    }
}

#[inline(always)]
fn place_of(address: Address, port: u16) -> Place {
    if maps::is_own(address) {
        Place::Own
    } else if address.is_v4()
        && port != 0
        && maps::is_neighbour(address.words_be[3].to_ne_bytes(), port)
    {
        Place::Neighbour
    } else {
        Place::Elsewhere
    }
}

/// Stores the destination on the socket. An agent can make the allocation fail (by filling `sk_omem_alloc`); then the
/// connection must not go on, as nobody would know where it wanted to go.
#[inline(always)]
fn remember(ctx: &SockAddrContext, address: Address, port: u16) -> Result<(), Refused> {
    let slot = maps::original_of(sockaddr::socket(ctx), true);
    if slot.is_null() {
        return Err(Refused(decide::ECONNREFUSED, REFUSED_STORAGE));
    }
    let original = Original {
        address,
        port,
        state: REDIRECTED,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        comm: bpf_get_current_comm().unwrap_or([0; 16]),
    };
    unsafe { slot.write(original) };
    Ok(())
}

/// Whether this socket talks to the gateway already. For a datagram that means the resolver, which anybody may ask.
#[inline(always)]
fn is_redirected(ctx: &SockAddrContext) -> bool {
    let slot = maps::original_of(sockaddr::socket(ctx), false);
    !slot.is_null() && unsafe { (*slot).state == REDIRECTED }
}

/// Marks a socket that was redirected before and now talks to the own loopback.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    let slot = maps::original_of(sockaddr::socket(ctx), false);
    if !slot.is_null() {
        unsafe { (*slot).state = NOT_REDIRECTED };
    }
}
