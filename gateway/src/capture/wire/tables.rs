//! The maps that say what may pass.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError};
use gateway_ebpf::abi;

use crate::capture::arm::open;
use crate::capture::maps::{Wire, address_of};
use crate::capture::{Pins, ProgramsError};
use crate::net::Openings;

type Workloads = HashMap<MapData, u64, Wire<abi::Workload>>;

/// The maps of one workload.
pub(super) struct Tables {
    own: HashMap<MapData, Wire<abi::Address>, u32>,
    neighbours: LpmTrie<MapData, [u8; 6], u16>,
    published: HashMap<MapData, u32, u32>,
    devices: HashMap<MapData, u32, Wire<abi::Device>>,
    inside: HashMap<MapData, u32, u32>,
    hardware: HashMap<MapData, [u8; 4], Wire<abi::Hardware>>,
    workloads: Workloads,
    /// What is open on every wire.
    flags: u16,
    /// The own addresses that are in the map.
    known: BTreeSet<IpAddr>,
    /// What was disarmed.
    disarmed: Option<(u64, Wire<abi::Workload>)>,
}

/// The value of maps that are sets.
const IS_MEMBER: u32 = 1;

impl Tables {
    /// The maps that are pinned for a workload.
    pub(super) fn of(pins: &Pins) -> Result<Self, ProgramsError> {
        Ok(Self {
            own: open(pins, abi::OWN)?,
            neighbours: open(pins, abi::NEIGHBOURS)?,
            published: open(pins, abi::PUBLISHED)?,
            devices: open(pins, abi::DEVICES)?,
            inside: open(pins, abi::INSIDE)?,
            hardware: open(pins, abi::NEIGHBOUR_HARDWARE)?,
            workloads: open(pins, abi::WORKLOADS)?,
            flags: 0,
            known: BTreeSet::new(),
            disarmed: None,
        })
    }

    /// Writes what the operator opens, and nothing else: an earlier gateway may have left more.
    pub(super) fn open(&mut self, openings: &Openings) -> Result<(), ProgramsError> {
        clear(&mut self.own).map_err(map(abi::OWN))?;
        clear(&mut self.published).map_err(map(abi::PUBLISHED))?;
        clear(&mut self.devices).map_err(map(abi::DEVICES))?;
        clear(&mut self.inside).map_err(map(abi::INSIDE))?;
        let keys: Vec<Key<[u8; 6]>> = self.neighbours.keys().filter_map(Result::ok).collect();
        for key in keys {
            gone_is_as_good(self.neighbours.remove(&key)).map_err(map(abi::NEIGHBOURS))?;
        }
        for neighbour in &openings.neighbours {
            // Port 0 stands for the address alone, which ARP may ask for.
            for port in [neighbour.port, 0] {
                let bits = abi::NEIGHBOUR_PORT_BITS + u32::from(neighbour.network.prefix_len());
                let data = abi::neighbour_key(neighbour.network.network().octets(), port);
                self.neighbours
                    .insert(&Key::new(bits, data), 1, 0)
                    .map_err(map(abi::NEIGHBOURS))?;
            }
        }
        for port in &openings.inbound {
            self.published.insert(u32::from(*port), IS_MEMBER, 0).map_err(map(abi::PUBLISHED))?;
        }
        let has_neighbours = if openings.neighbours.is_empty() { 0 } else { abi::HAS_NEIGHBOURS };
        let has_inbound = if openings.inbound.is_empty() { 0 } else { abi::HAS_INBOUND };
        self.flags = has_neighbours | has_inbound;
        Ok(())
    }

    /// Opens a fenced wire as far as the operator does. An interface without an Ethernet address stays closed.
    pub(super) fn let_pass(
        &mut self,
        inner: u32,
        outer: u32,
        hardware: &[u8],
    ) -> Result<(), ProgramsError> {
        let hardware = hardware.first_chunk::<6>().copied();
        let flags = hardware.map_or(0, |_address| self.flags);
        let device = abi::Device { hardware: hardware.unwrap_or_default(), flags };
        self.devices.insert(outer, Wire(device), 0).map_err(map(abi::DEVICES))?;
        self.inside.insert(inner, IS_MEMBER, 0).map_err(map(abi::INSIDE))
    }

    /// Notes which machine has an address, so that it need not be asked again.
    pub(super) fn know(&mut self, ip: Ipv4Addr, octets: [u8; 6]) -> Result<(), ProgramsError> {
        let hardware = Wire(abi::Hardware { octets, pad: 0 });
        self.hardware.insert(ip.octets(), hardware, 0).map_err(map(abi::NEIGHBOUR_HARDWARE))
    }

    /// Closes a wire.
    pub(super) fn close(&mut self, inner: u32, outer: u32) -> Result<(), ProgramsError> {
        gone_is_as_good(self.inside.remove(&inner)).map_err(map(abi::INSIDE))?;
        gone_is_as_good(self.devices.remove(&outer)).map_err(map(abi::DEVICES))
    }

    /// Makes the workload's own addresses `now`. One for which there is no room is not local: connects to it go to the
    /// gateway.
    pub(super) fn set_own(&mut self, now: &BTreeSet<IpAddr>) -> Result<(), ProgramsError> {
        for ip in self.known.difference(now) {
            gone_is_as_good(self.own.remove(&Wire(address_of(*ip)))).map_err(map(abi::OWN))?;
        }
        for ip in now.difference(&self.known) {
            if let Err(error) = self.own.insert(Wire(address_of(*ip)), IS_MEMBER, 0) {
                tracing::warn!(%error, %ip, "an address of a workload is not known to be its own");
            }
        }
        self.known.clone_from(now);
        Ok(())
    }

    /// Refuses the workload everything.
    pub(super) fn disarm(&mut self, cookie: Option<u64>) -> Result<(), ProgramsError> {
        let Some(cookie) = cookie else { return Ok(()) };
        match self.workloads.get(&cookie, 0) {
            Ok(workload) => {
                self.disarmed = Some((cookie, workload));
                gone_is_as_good(self.workloads.remove(&cookie)).map_err(map(abi::WORKLOADS))
            }
            Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(map(abi::WORKLOADS)(error)),
        }
    }

    /// Serves a workload again that was disarmed.
    pub(super) fn arm_again(&mut self) -> Result<(), ProgramsError> {
        let Some((cookie, workload)) = self.disarmed.take() else { return Ok(()) };
        self.workloads.insert(cookie, workload, 0).map_err(map(abi::WORKLOADS))
    }
}

fn clear<K: aya::Pod, V: aya::Pod>(table: &mut HashMap<MapData, K, V>) -> Result<(), MapError> {
    let keys: Vec<K> = table.keys().filter_map(Result::ok).collect();
    keys.iter().try_for_each(|key| gone_is_as_good(table.remove(key)))
}

fn gone_is_as_good(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn map(name: &'static str) -> impl Fn(MapError) -> ProgramsError {
    move |source| ProgramsError::Map { name: name.to_owned(), source }
}
