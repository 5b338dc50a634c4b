//! The maps: who writes, who reads, what happens when one is full.

use core::ptr::null_mut;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, RingBuf, SkStorage};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::btf_map;
use gateway_ebpf::abi::{
    ADMITTED_MAX, ARRIVALS_MAX, Address, Arrival, ArrivalKey, BUCKETS_MAX, Bucket, DEVICES_MAX,
    Device, FLOWS_MAX, Flow, FlowKey, Hardware, NEIGHBOUR_BITS, NEIGHBOUR_HARDWARE_MAX,
    NEIGHBOURS_MAX, OWN_MAX, Original, PUBLISHED_MAX, REFUSALS_BYTES, REFUSED_CODES, Refusal,
    Tally, Told, WORKLOADS_MAX, Workload, neighbour_key,
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

/// What the workload may still give the gateway to do. Written by the gateway before it arms the workload; without, all
/// that would come to the gateway is refused.
#[btf_map]
pub(crate) static BUCKETS: Array<Bucket, BUCKETS_MAX> = Array::new();

/// The workload's own addresses, loopback aside. Written by the gateway when an address comes or goes; an address that
/// is missing is not local: connects to it go to the gateway.
#[btf_map]
pub(crate) static OWN: HashMap<Address, u32, OWN_MAX> = HashMap::new();

/// Port and network of every neighbour, and with port 0 its network alone. Written once by the gateway.
#[btf_map]
pub(crate) static NEIGHBOURS: LpmTrie<[u8; 6], u16, NEIGHBOURS_MAX> = LpmTrie::new();

/// Ports that connections may come in to. Written once by the gateway.
#[btf_map]
pub(crate) static PUBLISHED: HashMap<u32, u32, PUBLISHED_MAX> = HashMap::new();

/// Index of the host's end of a wire → what may pass. Written by the gateway when it fences the wire; without an entry
/// nothing passes.
#[btf_map]
pub(crate) static DEVICES: HashMap<u32, Device, DEVICES_MAX> = HashMap::new();

/// Index of the workload's end of every fenced wire.
#[btf_map]
pub(crate) static INSIDE: HashMap<u32, u32, DEVICES_MAX> = HashMap::new();

/// Connections that came in. Written when one begins, at the host's end of the wire, where no process of the workload
/// can pretend to be outside. LRU: when too many begin, the oldest are cut.
#[btf_map]
pub(crate) static ARRIVALS: LruHashMap<ArrivalKey, Arrival, ARRIVALS_MAX> = LruHashMap::new();

/// Address → hardware address of those who have spoken to the workload; the gateway writes those that the workload knew
/// before. LRU: who was pushed out speaks again.
#[btf_map]
pub(crate) static NEIGHBOUR_HARDWARE: LruHashMap<[u8; 4], Hardware, NEIGHBOUR_HARDWARE_MAX> =
    LruHashMap::new();

/// Cgroup id → since when it is admitted through the gate of the slice. Written by the gateway when the cgroup has
/// programs of its own. Only the slice's programs use it, and only they have more than one entry.
#[btf_map]
pub(crate) static ADMITTED: HashMap<u64, u64, ADMITTED_MAX> = HashMap::new();

/// Whether an address is the workload's own, on another device than `lo`.
#[inline(always)]
pub(crate) fn is_own(address: Address) -> bool {
    unsafe { OWN.get(address) }.is_some()
}

/// Whether an address and port are a neighbour's; with port 0, whether the address is.
#[inline(always)]
pub(crate) fn is_neighbour(address: [u8; 4], port: u16) -> bool {
    NEIGHBOURS.get(&Key::new(NEIGHBOUR_BITS, neighbour_key(address, port))).is_some()
}

/// The storage of `socket`; null when there is none, or with `create` when it cannot be allocated.
///
/// The typed wrapper takes sock_addr contexts only; sock_ops needs the same look-up.
#[inline(always)]
pub(crate) fn original_of(socket: *mut bpf_sock, create: bool) -> *mut Original {
    let flags = if create { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
    let map = (&raw const ORIGINALS).cast_mut().cast();
    unsafe { bpf_sk_storage_get(map, socket.cast(), null_mut(), flags) }.cast()
}
