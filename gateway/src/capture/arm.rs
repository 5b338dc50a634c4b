//! Opening and closing the way to the gateway, in the maps that are pinned for a workload.

use aya::maps::{HashMap, Map, MapData, MapError, RingBuf};
use gateway_ebpf::abi;

use super::maps::{KernelFlows, Wire};
use super::{Pins, ProgramsError, Refusals};

/// The maps that the gateway reads.
pub(super) struct Armed {
    pub(super) flows: KernelFlows,
    pub(super) refusals: Refusals,
}

type Workloads = HashMap<MapData, u64, Wire<abi::Workload>>;
type Flows = HashMap<MapData, Wire<abi::FlowKey>, Wire<abi::Flow>>;

/// Opens the way to the gateway for one network namespace and for no other, and hands out the maps.
pub(super) fn arm(
    pins: &Pins,
    netns_cookie: u64,
    port: u16,
    has_ipv6: bool,
) -> Result<Armed, ProgramsError> {
    let flows: Flows = open(pins, abi::FLOWS)?;
    let refusals: RingBuf<MapData> = open(pins, abi::REFUSALS)?;
    let mut workloads: Workloads = open(pins, abi::WORKLOADS)?;
    remove_all_but(&mut workloads, Some(netns_cookie))?;
    let flags = if has_ipv6 { abi::HAS_IPV6 } else { 0 };
    let workload = abi::Workload { gateway_port: port, flags, pad: 0 };
    workloads.insert(netns_cookie, Wire(workload), 0).map_err(failed(abi::WORKLOADS))?;
    Ok(Armed {
        flows: KernelFlows::new(flows, netns_cookie, port),
        refusals: Refusals::new(refusals),
    })
}

/// Closes the way for every network namespace: from here on, everything is refused.
pub(super) fn disarm(pins: &Pins) -> Result<(), ProgramsError> {
    remove_all_but(&mut open(pins, abi::WORKLOADS)?, None)
}

/// Removes the records of connections that came while nobody listened: they were refused, and an agent that tried
/// often enough has filled the table with them.
pub(super) fn forget_flows(pins: &Pins) -> Result<(), ProgramsError> {
    let mut flows: Flows = open(pins, abi::FLOWS)?;
    let keys: Vec<Wire<abi::FlowKey>> = flows.keys().filter_map(Result::ok).collect();
    for key in keys {
        gone_is_as_good(flows.remove(&key)).map_err(failed(abi::FLOWS))?;
    }
    Ok(())
}

fn remove_all_but(workloads: &mut Workloads, kept: Option<u64>) -> Result<(), ProgramsError> {
    let cookies: Vec<u64> =
        workloads.keys().collect::<Result<_, _>>().map_err(failed(abi::WORKLOADS))?;
    for cookie in cookies.into_iter().filter(|cookie| Some(*cookie) != kept) {
        gone_is_as_good(workloads.remove(&cookie)).map_err(failed(abi::WORKLOADS))?;
    }
    Ok(())
}

fn gone_is_as_good(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

/// A map that is pinned for a workload.
pub(super) fn open<M: TryFrom<Map, Error = MapError>>(
    pins: &Pins,
    name: &str,
) -> Result<M, ProgramsError> {
    let data = MapData::from_pin(pins.map_path(name)).map_err(failed(name))?;
    Map::from_map_data(data).and_then(M::try_from).map_err(failed(name))
}

fn failed(name: &str) -> impl Fn(MapError) -> ProgramsError {
    move |source| ProgramsError::Map { name: name.to_owned(), source }
}
