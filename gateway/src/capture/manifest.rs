//! What the built object says of itself: its maps and their sizes, its programs and their hooks.

use std::sync::LazyLock;

use aya::maps::MapInfo;
use aya_obj::generated::bpf_attach_type;
use aya_obj::{EbpfSectionKind, Object, ProgramSection};
use gateway_ebpf::abi;

use super::ProgramsError;
use super::programs::OBJECT;

/// Read once: it is a part of the binary.
static MANIFEST: LazyLock<Option<Manifest>> = LazyLock::new(Manifest::read);

pub(super) struct Manifest {
    /// Those of workloads.
    maps: Vec<MapShape>,
    /// Those of the gate of the slice.
    gate_maps: Vec<MapShape>,
    hooks: Vec<(String, u32)>,
}

/// A map that lives as long as what it is pinned for.
pub(super) struct MapShape {
    pub(super) name: String,
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
}

impl Manifest {
    pub(super) fn get() -> Result<&'static Self, ProgramsError> {
        MANIFEST.as_ref().ok_or(ProgramsError::NotBuilt)
    }

    fn read() -> Option<Self> {
        let object = Object::parse(OBJECT).ok()?;
        // Constants and the diagnostics' buffer belong to one load of the object, and are no BTF maps.
        let (gate_maps, maps) = object
            .maps
            .iter()
            .filter(|(_, map)| map.section_kind() == EbpfSectionKind::BtfMaps)
            .map(|(name, map)| MapShape {
                name: name.clone(),
                kind: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                entries: map.max_entries(),
            })
            .partition(|map| map.name == abi::ADMITTED);
        let hooks = object
            .programs
            .iter()
            .filter_map(|(name, program)| Some((name.clone(), hook_of(&program.section)?)))
            .collect();
        Some(Self { maps, gate_maps, hooks })
    }

    /// The maps that are pinned for a workload.
    pub(super) fn maps(&self) -> &[MapShape] {
        &self.maps
    }

    /// The map that is pinned for the gate of the slice.
    pub(super) fn gate_maps(&self) -> &[MapShape] {
        &self.gate_maps
    }

    /// The hook that the section of a program names, as a number of `enum bpf_attach_type`.
    pub(super) fn hook(&self, name: &str) -> Result<u32, ProgramsError> {
        self.hooks
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, hook)| *hook)
            .ok_or(ProgramsError::Missing { what: "hook for the program", name: name.to_owned() })
    }
}

impl MapShape {
    /// Whether a map of the kernel has this shape.
    pub(super) fn is_like(&self, found: &MapInfo) -> bool {
        found.map_type().is_ok_and(|kind| kind as u32 == self.kind)
            && (found.key_size(), found.value_size(), found.max_entries())
                == (self.key_size, self.value_size, self.entries)
    }
}

fn hook_of(section: &ProgramSection) -> Option<u32> {
    let hook = match section {
        ProgramSection::CgroupSockAddr { attach_type } => bpf_attach_type::from(*attach_type),
        ProgramSection::CgroupSock { attach_type } => bpf_attach_type::from(*attach_type),
        ProgramSection::CgroupSockopt { attach_type } => bpf_attach_type::from(*attach_type),
        ProgramSection::SockOps => bpf_attach_type::BPF_CGROUP_SOCK_OPS,
        _ => return None,
    };
    Some(hook as u32)
}
