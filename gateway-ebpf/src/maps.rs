//! The maps: who writes, who reads, what happens when one is full.

use core::ptr::null_mut;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::{Array, HashMap, RingBuf, SkStorage};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::btf_map;
use gateway_ebpf::abi::{
    FLOWS_MAX, Flow, FlowKey, Original, REFUSALS_BYTES, REFUSED_CODES, Refusal, Tally, Told,
    WORKLOADS_MAX, Workload,
};

/// Network namespace cookie → workload. Written by the gateway when it arms a workload; a namespace without an entry
/// is refused everything.
#[btf_map]
pub(crate) static WORKLOADS: HashMap<u64, Workload, WORKLOADS_MAX> = HashMap::new();

/// Socket → where it wanted to go. Written at connect and sendmsg; when the kernel cannot allocate it, the connect is
/// refused.
#[btf_map]
pub(crate) static ORIGINALS: SkStorage<Original> = SkStorage::new();

/// Connection → where it wanted to go. Written at TCP_CONNECT_CB, taken once by the gateway at accept. Never LRU: one
/// process must not push out another's record. When it is full, a connection has no record and the gateway resets it.
#[btf_map]
pub(crate) static FLOWS: HashMap<FlowKey, Flow, FLOWS_MAX> = HashMap::new();

/// Refusals for the audit. When it is full, they are counted in [`TALLIES`].
#[btf_map]
pub(crate) static REFUSALS: RingBuf<Refusal, REFUSALS_BYTES> = RingBuf::new();

/// Class of refusal → what became of it. Each refusal is an event or counted here, never neither.
#[btf_map]
pub(crate) static TALLIES: Array<Tally, REFUSED_CODES> = Array::new();

/// Class of refusal → what the audit knows of [`TALLIES`]. No program touches it; it is here so that it is pinned and
/// adopted with the others, and a gateway that takes over neither repeats nor skips a count.
#[btf_map]
#[expect(dead_code, reason = "the gateway's alone")]
pub(crate) static TOLD: Array<Told, REFUSED_CODES> = Array::new();

/// The storage of `socket`; null when there is none, or with `create` when it cannot be allocated.
///
/// The typed wrapper takes sock_addr contexts only; sock_ops needs the same look-up.
#[inline(always)]
pub(crate) fn original_of(socket: *mut bpf_sock, create: bool) -> *mut Original {
    let flags = if create { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
    let map = (&raw const ORIGINALS).cast_mut().cast();
    unsafe { bpf_sk_storage_get(map, socket.cast(), null_mut(), flags) }.cast()
}
