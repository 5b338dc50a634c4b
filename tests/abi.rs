//! The built kernel object holds what `gateway_ebpf::abi` promises: no privilege needed, only the object.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aya_obj::generated::bpf_map_type;
use aya_obj::programs::{
    CgroupSkbAttachType, CgroupSockAddrAttachType as Addr, CgroupSockAttachType,
};
use aya_obj::{Object, ProgramSection};
use gateway_ebpf::abi;

/// The object that `build.rs` embeds; `None` at a desk without it.
#[cfg(test)]
fn object() -> Option<Object> {
    let path = match std::env::var_os("TOLLGATE_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/tollgate-bpf.o"),
    };
    let bytes = std::fs::read(&path).unwrap_or_default();
    if bytes.is_empty() {
        let missing =
            format!("no kernel object at {}; `cargo xtask ebpf` builds it", path.display());
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        println!("SKIPPED: {missing}");
        return None;
    }
    Some(Object::parse(&bytes).expect("the object is an ELF file of BPF programs"))
}

#[test]
fn every_map_has_the_name_type_and_sizes_of_the_abi() {
    let Some(object) = object() else { return };
    let size = |bytes: usize| u32::try_from(bytes).unwrap();
    let array = bpf_map_type::BPF_MAP_TYPE_ARRAY;
    let rows = [
        (
            abi::WORKLOADS,
            bpf_map_type::BPF_MAP_TYPE_HASH,
            size_of::<u64>(),
            size_of::<abi::Workload>(),
            abi::WORKLOADS_MAX,
        ),
        (
            // Socket storage is keyed by a socket's descriptor and has no number of entries of its own.
            abi::ORIGINALS,
            bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
            size_of::<i32>(),
            size_of::<abi::Original>(),
            0,
        ),
        (
            // Not LRU: one process must not push out another's record.
            abi::FLOWS,
            bpf_map_type::BPF_MAP_TYPE_HASH,
            size_of::<abi::FlowKey>(),
            size_of::<abi::Flow>(),
            abi::FLOWS_MAX,
        ),
        (abi::REFUSALS, bpf_map_type::BPF_MAP_TYPE_RINGBUF, 0, 0, abi::REFUSALS_BYTES),
        (abi::TALLIES, array, 4, size_of::<abi::Tally>(), abi::REFUSED_CODES),
        (abi::TOLD, array, 4, size_of::<abi::Told>(), abi::REFUSED_CODES),
        (abi::BUCKETS, array, 4, size_of::<abi::Bucket>(), abi::BUCKETS_MAX),
        (abi::OWN, bpf_map_type::BPF_MAP_TYPE_HASH, size_of::<abi::Address>(), 4, abi::OWN_MAX),
        (
            // A prefix length, then port and network.
            abi::NEIGHBOURS,
            bpf_map_type::BPF_MAP_TYPE_LPM_TRIE,
            4 + 6,
            2,
            abi::NEIGHBOURS_MAX,
        ),
        (abi::ADMITTED, bpf_map_type::BPF_MAP_TYPE_HASH, 8, 8, abi::ADMITTED_MAX),
        (abi::PUBLISHED, bpf_map_type::BPF_MAP_TYPE_HASH, 4, 4, abi::PUBLISHED_MAX),
        (
            abi::DEVICES,
            bpf_map_type::BPF_MAP_TYPE_HASH,
            4,
            size_of::<abi::Device>(),
            abi::DEVICES_MAX,
        ),
        (abi::INSIDE, bpf_map_type::BPF_MAP_TYPE_HASH, 4, 4, abi::DEVICES_MAX),
        (
            // LRU: only connections from outside are in it, and pushing one out closes, it does not open.
            abi::ARRIVALS,
            bpf_map_type::BPF_MAP_TYPE_LRU_HASH,
            size_of::<abi::ArrivalKey>(),
            size_of::<abi::Arrival>(),
            abi::ARRIVALS_MAX,
        ),
        (
            abi::NEIGHBOUR_HARDWARE,
            bpf_map_type::BPF_MAP_TYPE_LRU_HASH,
            4,
            size_of::<abi::Hardware>(),
            abi::NEIGHBOUR_HARDWARE_MAX,
        ),
    ];
    for (name, kind, key, value, entries) in rows {
        let map = object.maps.get(name).unwrap_or_else(|| panic!("there is no map {name}"));
        let found = (map.map_type(), map.key_size(), map.value_size(), map.max_entries());
        assert_eq!(found, (kind as u32, size(key), size(value), size(entries)), "map {name}");
    }
}

#[test]
fn there_is_no_map_that_the_abi_does_not_name() {
    let Some(object) = object() else { return };
    let named = BTreeSet::from([
        abi::WORKLOADS,
        abi::ORIGINALS,
        abi::FLOWS,
        abi::REFUSALS,
        abi::TALLIES,
        abi::TOLD,
        abi::BUCKETS,
        abi::OWN,
        abi::NEIGHBOURS,
        abi::PUBLISHED,
        abi::DEVICES,
        abi::INSIDE,
        abi::ARRIVALS,
        abi::NEIGHBOUR_HARDWARE,
        abi::ADMITTED,
    ]);
    let others: Vec<&str> = object
        .maps
        .keys()
        .map(String::as_str)
        // Sections of constants, and the buffers of aya-log.
        .filter(|name| !name.starts_with('.') && !name.starts_with("AYA_LOG"))
        .filter(|name| !named.contains(name))
        .collect();
    assert_eq!(others, Vec::<&str>::new());
}

#[test]
fn every_program_that_capture_attaches_is_there_for_its_hook_and_no_other() {
    let Some(object) = object() else { return };
    let address = |attach_type| ProgramSection::CgroupSockAddr { attach_type };
    let socket = |attach_type| ProgramSection::CgroupSock { attach_type };
    // The fence's direction is chosen when it is attached.
    let fence =
        |attach_type: Option<CgroupSkbAttachType>| ProgramSection::CgroupSkb { attach_type };
    let mut expected = [
        ("tollgate_connect4", address(Addr::Connect4)),
        ("tollgate_connect6", address(Addr::Connect6)),
        ("tollgate_sendmsg4", address(Addr::UDPSendMsg4)),
        ("tollgate_sendmsg6", address(Addr::UDPSendMsg6)),
        ("tollgate_recvmsg4", address(Addr::UDPRecvMsg4)),
        ("tollgate_recvmsg6", address(Addr::UDPRecvMsg6)),
        ("tollgate_getpeername4", address(Addr::GetPeerName4)),
        ("tollgate_getpeername6", address(Addr::GetPeerName6)),
        ("tollgate_sock_create", socket(CgroupSockAttachType::SockCreate)),
        ("tollgate_post_bind4", socket(CgroupSockAttachType::PostBind4)),
        ("tollgate_post_bind6", socket(CgroupSockAttachType::PostBind6)),
        ("tollgate_sock_ops", ProgramSection::SockOps),
        ("tollgate_egress", fence(None)),
        ("tollgate_ingress", fence(None)),
        ("tollgate_wire_out", ProgramSection::SchedClassifier),
        ("tollgate_wire_in", ProgramSection::SchedClassifier),
        ("tollgate_slice_connect4", address(Addr::Connect4)),
        ("tollgate_slice_connect6", address(Addr::Connect6)),
        ("tollgate_slice_sendmsg4", address(Addr::UDPSendMsg4)),
        ("tollgate_slice_sendmsg6", address(Addr::UDPSendMsg6)),
        ("tollgate_slice_sock_create", socket(CgroupSockAttachType::SockCreate)),
        ("tollgate_slice_egress", fence(None)),
        ("tollgate_slice_ingress", fence(None)),
    ]
    .map(|(name, section)| (name.to_owned(), format!("{section:?}")));
    expected.sort();
    let mut found: Vec<(String, String)> = object
        .programs
        .iter()
        .map(|(name, program)| (name.clone(), format!("{:?}", program.section)))
        .collect();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn the_programs_may_use_the_helpers_that_the_kernel_gives_to_gpl_programs_only() {
    let Some(object) = object() else { return };
    assert_eq!(object.license.to_str(), Ok("Dual MIT/GPL"));
}
