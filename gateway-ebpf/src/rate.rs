//! Rates: what comes faster than the workload's bucket lets through is refused where it is made, in the time of whoever
//! makes it. The gateway, which serves others as well, never hears of it.
//!
//! Each workload has its own buckets. TCP is counted at connect, datagrams at sendmsg where they name their destination;
//! those of a connected socket name none, and are counted on their way out.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use gateway_ebpf::abi::{BUCKET_CONNECTS, BUCKET_DATAGRAMS, Bucket};
use gateway_ebpf::bucket::{self, Take};
use gateway_ebpf::decide;

use crate::event::add;
use crate::maps::BUCKETS;
use crate::redirect::Hook;
use crate::sockaddr;

/// Whether one more connection or datagram may go to the gateway.
#[inline(always)]
pub(crate) fn admits(ctx: &SockAddrContext, hook: Hook) -> bool {
    match (hook, sockaddr::protocol(ctx)) {
        (Hook::Connect, decide::TCP) => has_room(BUCKET_CONNECTS),
        // It sends nothing.
        (Hook::Connect, _) => true,
        (Hook::Send, _) => {
            let Some(bucket) = BUCKETS.get(BUCKET_DATAGRAMS) else { return false };
            let port_be = unsafe { read_volatile(&raw const (*sockaddr::socket(ctx)).dst_port) };
            // Counted on its way out.
            port_be == bucket.gateway_port.to_be() || has_room(BUCKET_DATAGRAMS)
        }
    }
}

/// Whether a packet to the own loopback is a datagram of a connected socket for the gateway for which there is no room.
#[inline(always)]
pub(crate) fn is_too_much(ctx: &SkBuffContext) -> bool {
    // SAFETY of the reads: the verifier knows the field as a socket or null, and the helper's result likewise.
    let socket = unsafe { read_volatile(&raw const (*ctx.skb.skb).__bindgen_anon_2.sk) };
    if socket.is_null() {
        return false;
    }
    let port_be = unsafe { read_volatile(&raw const (*socket).dst_port) };
    let Some(bucket) = BUCKETS.get(BUCKET_DATAGRAMS) else { return true };
    if port_be != bucket.gateway_port.to_be() {
        return false;
    }
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return false;
    }
    let protocol = unsafe { read_volatile(&raw const (*socket).protocol) };
    protocol == decide::UDP && !has_room(BUCKET_DATAGRAMS)
}

/// Takes from a bucket. Processors that take the last one at once may take one each.
#[inline(always)]
fn has_room(index: u32) -> bool {
    let Some(bucket) = BUCKETS.get_ptr_mut(index) else { return false };
    let bucket: *mut Bucket = bucket;
    let paid_until = unsafe { &raw mut (*bucket).paid_until_ns };
    let (paid_until_ns, slack_ns, interval_ns) = unsafe {
        (
            read_volatile(paid_until),
            read_volatile(&raw const (*bucket).slack_ns),
            read_volatile(&raw const (*bucket).interval_ns),
        )
    };
    match bucket::take(paid_until_ns, slack_ns, interval_ns, unsafe { bpf_ktime_get_ns() }) {
        // Nothing is owed: what is lost where two write at once is one interval.
        Take::Rested(until) => unsafe { write_volatile(paid_until, until) },
        Take::Owed => unsafe { add(paid_until, u64::from(interval_ns)) },
        Take::Refused => return false,
    }
    true
}
