//! The gate of Tollgate's slice: whatever is below it reaches nothing until its cgroup has been admitted.
//!
//! These programs are attached to the slice itself, so that a cgroup is closed from its creation on, whoever makes it.
//! They refuse or pass and never change anything: what is admitted is governed by programs of its own, which run first.
//!
//! Why the task's cgroup at connect and sendmsg, and the socket's at packets: the first hooks may not ask for the
//! socket's. A socket that changes hands has to pass both, and those of its own cgroup. What they cannot see: AF_PACKET
//! and AF_XDP, and frames that the kernel makes by itself.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_set_retval, bpf_skb_ancestor_cgroup_id,
};
use aya_ebpf::programs::{SkBuffContext, SockContext};
use gateway_ebpf::abi::SLICE_DEPTH_MAX;
use gateway_ebpf::decide;

use crate::maps::ADMITTED;
use crate::{PASS, REFUSE, socket};

/// connect4/6 and sendmsg4/6.
#[inline(always)]
pub(crate) fn destination() -> i32 {
    if task_is_admitted() {
        return PASS;
    }
    unsafe { bpf_set_retval(-decide::ECONNREFUSED) };
    REFUSE
}

/// sock_create: the same sockets come into being as later, so that nothing is made now that is refused then.
#[inline(always)]
pub(crate) fn create(ctx: &SockContext) -> i32 {
    if socket::is_allowed(ctx) || task_is_admitted() {
        return PASS;
    }
    unsafe { bpf_set_retval(-decide::EPROTONOSUPPORT) };
    REFUSE
}

/// Packets in and out, by whatever device: loopback too, as the network may be the host's.
#[inline(always)]
pub(crate) fn packet(ctx: &SkBuffContext) -> i32 {
    let skb: *mut __sk_buff = ctx.skb.skb;
    if is_admitted(|level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) }) {
        PASS
    } else {
        REFUSE
    }
}

#[inline(always)]
fn task_is_admitted() -> bool {
    is_admitted(|level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

/// Whether the cgroup, or one above it, is admitted. `ancestor` says which one is so far below the root; 0 where the
/// cgroup is not so deep.
#[inline(always)]
fn is_admitted(ancestor: impl Fn(i32) -> u64) -> bool {
    for level in 1..=SLICE_DEPTH_MAX {
        let id = ancestor(level);
        if id == 0 {
            return false;
        }
        if unsafe { ADMITTED.get(id) }.is_some() {
            return true;
        }
    }
    false
}
