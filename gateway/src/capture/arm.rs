//! Opening and closing the way to the gateway, in the maps that are pinned for a workload.

use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use gateway_ebpf::abi;

use super::maps::{KernelFlows, Wire};
use super::{Pins, ProgramsError, Refusals, Way};

/// The maps that the gateway reads.
pub(super) struct Armed {
    pub(super) flows: KernelFlows,
    pub(super) refusals: Refusals,
}

type Workloads = HashMap<MapData, u64, Wire<abi::Workload>>;
type Buckets = Array<MapData, Wire<abi::Bucket>>;
type Flows = HashMap<MapData, Wire<abi::FlowKey>, Wire<abi::Flow>>;

/// Opens the way to the gateway for one network namespace and for no other, and hands out the maps.
pub(super) fn arm(
    pins: &Pins,
    netns_cookie: u64,
    way: Way,
    has_ipv6: bool,
) -> Result<Armed, ProgramsError> {
    let Way { port, .. } = way;
    fill_buckets(&mut open(pins, abi::BUCKETS)?, way)?;
    let flows: Flows = open(pins, abi::FLOWS)?;
    let refusals: RingBuf<MapData> = open(pins, abi::REFUSALS)?;
    let tallies: Array<MapData, Wire<abi::Tally>> = open(pins, abi::TALLIES)?;
    let told: Array<MapData, Wire<abi::Told>> = open(pins, abi::TOLD)?;
    let mut workloads: Workloads = open(pins, abi::WORKLOADS)?;
    remove_all_but(&mut workloads, &[abi::ANY_NAMESPACE, netns_cookie])?;
    let flags = if has_ipv6 { abi::HAS_IPV6 } else { 0 };
    let workload = abi::Workload { gateway_port: port, flags, pad: 0 };
    for key in [abi::ANY_NAMESPACE, netns_cookie] {
        workloads.insert(key, Wire(workload), 0).map_err(failed(abi::WORKLOADS))?;
    }
    Ok(Armed {
        flows: KernelFlows::new(flows, netns_cookie, port),
        refusals: Refusals::new(refusals, tallies, told),
    })
}

/// Fills the buckets of a workload that is not armed yet.
fn fill_buckets(buckets: &mut Buckets, way: Way) -> Result<(), ProgramsError> {
    let Way { port, connects_per_second } = way;
    let interval = NANOSECONDS / connects_per_second;
    for (index, bucket) in [
        (abi::BUCKET_CONNECTS, abi::Bucket::new(interval, abi::CONNECTS_BURST, port)),
        (
            abi::BUCKET_DATAGRAMS,
            abi::Bucket::new(abi::DATAGRAM_INTERVAL_NS, abi::DATAGRAMS_BURST, port),
        ),
    ] {
        buckets.set(index, Wire(bucket), 0).map_err(failed(abi::BUCKETS))?;
    }
    Ok(())
}

const NANOSECONDS: u32 = 1_000_000_000;

/// Closes the way for every network namespace, and what is open of the wires: from here on, everything is refused.
pub(super) fn disarm(pins: &Pins) -> Result<(), ProgramsError> {
    // Whoever could take the gateway's port now would be taken for the gateway later.
    remove_all_but(&mut open(pins, abi::WORKLOADS)?, &[abi::ANY_NAMESPACE])?;
    // Neighbours and published ports pass the gateway by: a workload that is not served has none.
    clear(&mut open::<HashMap<MapData, u32, u32>>(pins, abi::INSIDE)?)
        .map_err(failed(abi::INSIDE))?;
    clear(&mut open::<HashMap<MapData, u32, Wire<abi::Device>>>(pins, abi::DEVICES)?)
        .map_err(failed(abi::DEVICES))
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

fn remove_all_but(workloads: &mut Workloads, kept: &[u64]) -> Result<(), ProgramsError> {
    let cookies: Vec<u64> =
        workloads.keys().collect::<Result<_, _>>().map_err(failed(abi::WORKLOADS))?;
    for cookie in cookies.into_iter().filter(|cookie| !kept.contains(cookie)) {
        gone_is_as_good(workloads.remove(&cookie)).map_err(failed(abi::WORKLOADS))?;
    }
    Ok(())
}

/// Removes every entry of a table.
pub(super) fn clear<K: aya::Pod, V: aya::Pod>(
    table: &mut HashMap<MapData, K, V>,
) -> Result<(), MapError> {
    let keys: Vec<K> = table.keys().collect::<Result<_, _>>()?;
    keys.iter().try_for_each(|key| gone_is_as_good(table.remove(key)))
}

pub(super) fn gone_is_as_good(removed: Result<(), MapError>) -> Result<(), MapError> {
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
