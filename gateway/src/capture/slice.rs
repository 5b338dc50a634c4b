//! The gate of Tollgate's slice: what is below it is closed from its creation until it has programs of its own.
//!
//! Its programs are attached to the slice, pinned, and refuse everything to cgroups that are not in their map. Whoever
//! closes a cgroup admits it then, through every gate above it; gates are found by what the kernel says is attached, so
//! that one which somebody else has pinned elsewhere is found as well.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapError};
use aya::programs::CgroupSkbAttachType::{Egress, Ingress};
use gateway_ebpf::abi;
use nix::time::{ClockId, clock_gettime};

use super::links::{GATE_PREFIX, Links, has_every_own_program};
use super::programs::{Hook, Programs, Table};
use super::{BpfFs, CaptureError, Cgroup, CgroupRoot, Pins, ProgramsError, SLICE, arm, bpf};

/// The program by which a gate is found.
const FIRST: (&str, Hook) = ("tollgate_slice_egress", Hook::Skb(Egress));
/// The programs of the gate. Packets first: with them alone nothing gets out.
const GATE: Table = &[
    FIRST,
    ("tollgate_slice_ingress", Hook::Skb(Ingress)),
    ("tollgate_slice_sock_create", Hook::Sock),
    ("tollgate_slice_sendmsg4", Hook::Addr),
    ("tollgate_slice_sendmsg6", Hook::Addr),
    ("tollgate_slice_connect4", Hook::Addr),
    ("tollgate_slice_connect6", Hook::Addr),
];

/// How the names of the directories of its pins begin; the slice's id follows.
const PINS_PREFIX: &str = "slice-";

type Admitted = HashMap<MapData, u64, u64>;

/// The gate at work. Dropping it changes nothing: it goes on without anybody.
pub struct SliceGate {
    slice: Cgroup,
    links: Links,
    pins: Pins,
}

impl SliceGate {
    /// Puts the gate of this version to work for the slice, or takes over the one that is pinned for it. What below the
    /// slice has programs of its own is admitted before and after.
    ///
    /// # Errors
    /// When the slice cannot be made, or the kernel refuses; what was attached until then goes on refusing.
    pub fn close(cgroups: &CgroupRoot, bpf: &BpfFs) -> Result<Self, CaptureError> {
        let slice = cgroups.slice().map_err(ProgramsError::from)?;
        let pins = bpf.open_or_create(&pins_name(slice.id())).map_err(ProgramsError::from)?;
        let mut programs = Programs::load_gate(&pins)?;
        let is_new = Links::pinned(GATE, &slice, &pins)?.is_empty();
        let mut admitted: Admitted = arm::open(&pins, abi::ADMITTED)?;
        if is_new || since(&admitted)?.is_none() {
            let now = since_start()?;
            admitted.insert(abi::GATE_ITSELF, now, 0).map_err(failed)?;
        }
        admit_governed(slice.path(), &mut admitted)?;
        let links = programs.attach_all(GATE, &slice, &pins)?;
        // Whoever has closed a cgroup in between has not found the gate yet.
        admit_governed(slice.path(), &mut admitted)?;
        let is_known = |name: &str| GATE.iter().any(|(known, _)| *known == name);
        pins.tidy(is_known).map_err(ProgramsError::from)?;
        Ok(Self { slice, links, pins })
    }

    /// The slice, as long as it is the one that the gate is at.
    #[must_use]
    pub fn slice(&self) -> Option<&Cgroup> {
        self.slice.is_there().then_some(&self.slice)
    }

    /// Whether every program is at work, and pinned.
    ///
    /// # Errors
    /// Says which is not.
    pub fn verify(&self) -> Result<(), CaptureError> {
        self.links.verify(&self.slice)?;
        self.links.verify_pins(&self.pins)?;
        // Without it, a version that comes later would begin with another one.
        if !self.pins.map_path(abi::ADMITTED).exists() {
            let (name, what) = (abi::ADMITTED.to_owned(), "the pin of its map was removed");
            return Err(ProgramsError::NotAtWork { name, what }.into());
        }
        Ok(())
    }

    /// Closes it again where somebody has detached or unpinned it. What is still held stays at work.
    ///
    /// # Errors
    /// As for [`Self::close`].
    pub fn close_again(&mut self, cgroups: &CgroupRoot, bpf: &BpfFs) -> Result<(), CaptureError> {
        self.links.restore_pins(&self.pins)?;
        *self = Self::close(cgroups, bpf)?;
        Ok(())
    }

    /// Forgets admitted cgroups that are gone, and pins of slices that are.
    ///
    /// # Errors
    /// When the map cannot be read or written, or a pin not be removed.
    pub fn sweep(&self, bpf: &BpfFs) -> Result<(), CaptureError> {
        let mut admitted: Admitted = arm::open(&self.pins, abi::ADMITTED)?;
        let known: Vec<u64> = admitted.keys().collect::<Result<_, _>>().map_err(failed)?;
        // Looked for after the map was read: what was admitted in between is not among those that are asked for.
        let there = self.slice.ids().map_err(ProgramsError::from)?;
        let is_gone = |id: &u64| *id != abi::GATE_ITSELF && !there.contains(id);
        for id in known.into_iter().filter(is_gone) {
            gone_is_as_good(admitted.remove(&id))?;
        }
        let own = pins_name(self.slice.id());
        let names = bpf.workloads().map_err(ProgramsError::from)?;
        for name in names.iter().filter(|name| name.starts_with(PINS_PREFIX) && **name != own) {
            if let Some(pins) = bpf.existing(name)
                && pins.are_dead().map_err(ProgramsError::from)?
            {
                pins.remove().map_err(ProgramsError::from)?;
            }
        }
        Ok(())
    }
}

/// Whether Tollgate's slice has a gate, whoever keeps it; `None` where there is no slice.
#[must_use]
pub fn slice_is_gated(cgroups: &CgroupRoot) -> Option<bool> {
    let slice = File::open(cgroups.mount().join(SLICE)).ok()?;
    Some(GATE.iter().all(|(name, hook)| {
        let attached =
            hook.number(name).ok().and_then(|it| bpf::programs_on(&slice, it, false).ok());
        attached.is_some_and(|attached| attached.programs.into_iter().any(is_gate_program))
    }))
}

/// Admits a cgroup that has programs of its own through every gate above it. Returns since when the gate that was
/// closed first has refused it everything, by the clock that counts from the machine's start; `None` without a gate.
pub(super) fn admit(cgroup: &Cgroup) -> Result<Option<Duration>, ProgramsError> {
    let now = since_start()?;
    let mut earliest: Option<u64> = None;
    for mut gate in gates_above(cgroup.path())? {
        gate.insert(cgroup.id(), now, 0).map_err(failed)?;
        let closed = since(&gate)?.unwrap_or(now);
        earliest = Some(earliest.map_or(closed, |earliest| earliest.min(closed)));
    }
    Ok(earliest.map(Duration::from_nanos))
}

/// Takes the admission of a cgroup back.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn expel(cgroup: &Cgroup) -> Result<(), ProgramsError> {
    for mut gate in gates_above(cgroup.path())? {
        gone_is_as_good(gate.remove(&cgroup.id()))?;
    }
    Ok(())
}

fn pins_name(slice: u64) -> String {
    format!("{PINS_PREFIX}{slice}")
}

/// The maps of all gates at the cgroups above `path`, and at its own.
fn gates_above(path: &Path) -> Result<Vec<Admitted>, ProgramsError> {
    let (first, hook) = FIRST;
    let hook = hook.number(first)?;
    let asked = |source| ProgramsError::Link {
        step: "ask what is attached",
        name: first.to_owned(),
        source,
    };
    let mut gates = Vec::new();
    for cgroup in path.ancestors().take_while(|path| path.join("cgroup.procs").exists()) {
        let directory = File::open(cgroup).map_err(asked)?;
        let attached = bpf::programs_on(&directory, hook, false).map_err(asked)?;
        for program in attached.programs.into_iter().filter(|id| is_gate_program(*id)) {
            gates.extend(map_of(program)?);
        }
    }
    Ok(gates)
}

/// The map of a gate's program; `None` when the program is gone by now.
fn map_of(program: u32) -> Result<Option<Admitted>, ProgramsError> {
    let Ok(maps) = bpf::maps_of_program(program) else { return Ok(None) };
    for id in maps {
        let data = MapData::from_id(id).map_err(failed)?;
        if data.info().is_ok_and(|info| info.name_as_str() == Some(abi::ADMITTED)) {
            let map = Map::from_map_data(data).and_then(Admitted::try_from);
            return map.map(Some).map_err(failed);
        }
    }
    Ok(None)
}

fn is_gate_program(id: u32) -> bool {
    bpf::program_name(id).is_ok_and(|name| name.starts_with(GATE_PREFIX))
}

fn admit_governed(path: &Path, admitted: &mut Admitted) -> Result<(), ProgramsError> {
    let now = since_start()?;
    for below in fs::read_dir(path).into_iter().flatten().flatten() {
        if !below.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        // The very cgroup that was looked at is admitted, whatever its path leads to by then.
        let Ok(cgroup) = File::open(below.path()) else { continue };
        if has_every_own_program(&cgroup) {
            let Some(id) = id_of(&cgroup) else { continue };
            if admitted.get(&id, 0).is_err() {
                admitted.insert(id, now, 0).map_err(failed)?;
            }
        } else {
            admit_governed(&below.path(), admitted)?;
        }
    }
    Ok(())
}

/// The id of a cgroup: the inode number of its directory.
fn id_of(cgroup: &File) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    cgroup.metadata().ok().map(|found| found.ino())
}

fn since(gate: &Admitted) -> Result<Option<u64>, ProgramsError> {
    match gate.get(&abi::GATE_ITSELF, 0) {
        Ok(at) => Ok(Some(at)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Nanoseconds since the machine's start, the time that it slept included.
fn since_start() -> Result<u64, ProgramsError> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|errno| ProgramsError::Link {
        step: "read the clock",
        name: "CLOCK_BOOTTIME".to_owned(),
        source: errno.into(),
    })?;
    Ok(u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX))
}

fn gone_is_as_good(removed: Result<(), MapError>) -> Result<(), ProgramsError> {
    arm::gone_is_as_good(removed).map_err(failed)
}

fn failed(source: MapError) -> ProgramsError {
    ProgramsError::Map { name: abi::ADMITTED.to_owned(), source }
}
