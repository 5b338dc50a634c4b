//! sock_ops at TCP_CONNECT_CB: the destination goes from the socket into the table that the gateway reads at accept.
//!
//! Why this callback: `tcp_connect` calls it first, after the source port is chosen and before the SYN is built, so the
//! record is there before the gateway can accept. It runs for deferred Fast Open connects as well. It cannot refuse:
//! when the table is full the connection has no record, and the gateway resets it.

use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use gateway_ebpf::abi::{Address, Flow, FlowKey, REDIRECTED};

use crate::event;
use crate::maps::{self, FLOWS, WORKLOADS};

#[inline(always)]
pub(crate) fn record(ctx: &SockOpsContext) {
    let ops: *mut bpf_sock_ops = ctx.ops;
    let op = unsafe { read_volatile(&raw const (*ops).op) };
    if op != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return;
    }
    let socket = unsafe { read_volatile(&raw const (*ops).__bindgen_anon_2.sk) };
    if socket.is_null() {
        return;
    }
    let slot = maps::original_of(socket, false);
    if slot.is_null() {
        return;
    }
    let original = unsafe { *slot };
    if original.state != REDIRECTED {
        return;
    }
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let gateway_port = match unsafe { WORKLOADS.get(netns_cookie) } {
        Some(workload) => workload.gateway_port,
        None => return,
    };
    // Both are read before the choice: a load behind a branch makes the compiler choose an offset instead, which the
    // verifier refuses ("dereference of modified ctx ptr", seen on 6.18).
    let local_v4 = Address::from_v4_be(unsafe { read_volatile(&raw const (*ops).local_ip4) });
    let local_v6 = local_v6(ops);
    // The redirect keeps the address family of the destination, so it says which of the two sources is the one in use.
    let client = if original.address.is_v4() { local_v4 } else { local_v6 };
    let client_port = unsafe { read_volatile(&raw const (*ops).local_port) } as u16;
    let key = FlowKey { netns_cookie, client, client_port, gateway_port, pad: 0 };
    let flow = Flow { original, connected_ns: unsafe { bpf_ktime_get_ns() } };
    if FLOWS.insert(key, flow, 0).is_err() {
        debug!(ctx, "flow table full: port={}", client_port);
        event::refused_flow(&original);
    }
}

#[inline(always)]
fn local_v6(ops: *mut bpf_sock_ops) -> Address {
    let words = unsafe { &raw const (*ops).local_ip6 }.cast::<u32>();
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
}
