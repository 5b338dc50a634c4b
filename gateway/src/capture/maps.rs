//! The maps as the gateway sees them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{HashMap, MapData, MapError};
use gateway_ebpf::abi::{self, Abi};
use nix::time::{ClockId, clock_gettime};

use super::{Flow, FlowTable};
use crate::audit::Process;
use crate::net::{ClientAddr, OriginalDst};

/// A type of the ABI as raw bytes, for aya.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Wire<T: Abi>(pub(super) T);

// SAFETY: `Abi` promises what `Pod` asks for (repr(C), no padding, any bytes are a value), and the newtype is
// transparent. Safe code would need the orphan rule lifted: both trait and type are foreign here.
#[expect(unsafe_code, reason = "the one place where ABI types become map values")]
unsafe impl<T: Abi> Pod for Wire<T> {}

/// The connections of one workload between connect and accept.
#[derive(Debug)]
pub struct KernelFlows {
    table: Mutex<Table>,
    netns_cookie: u64,
    gateway_port: u16,
}

#[derive(Debug)]
struct Table {
    flows: HashMap<MapData, Wire<abi::FlowKey>, Wire<abi::Flow>>,
    swept: Instant,
}

/// How often records whose connection never came are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Age after which a record's SYN can no longer be answered: six SYN retries take 127 s.
const FLOW_MAX_AGE: Duration = Duration::from_secs(150);

impl KernelFlows {
    pub(super) fn new(
        flows: HashMap<MapData, Wire<abi::FlowKey>, Wire<abi::Flow>>,
        netns_cookie: u64,
        gateway_port: u16,
    ) -> Self {
        Self {
            table: Mutex::new(Table { flows, swept: Instant::now() }),
            netns_cookie,
            gateway_port,
        }
    }
}

impl FlowTable for KernelFlows {
    fn take(&self, client: ClientAddr) -> Option<Flow> {
        let key = abi::FlowKey {
            netns_cookie: self.netns_cookie,
            client: address_of(client.0.ip()),
            client_port: client.0.port(),
            gateway_port: self.gateway_port,
            pad: 0,
        };
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let found = table.flows.get(&Wire(key), 0);
        let taken = match found {
            Ok(flow) => match table.flows.remove(&Wire(key)) {
                Ok(()) => Some(flow_of(&flow.0)),
                Err(error) => {
                    tracing::error!(%error, "a connection's record cannot be taken");
                    None
                }
            },
            Err(MapError::KeyNotFound) => None,
            Err(error) => {
                tracing::error!(%error, "a connection's record cannot be read");
                None
            }
        };
        if table.swept.elapsed() > SWEEP_EVERY {
            table.swept = Instant::now();
            sweep(&mut table.flows);
        }
        taken
    }
}

/// Removes records of connections that were given up before they were accepted.
fn sweep(flows: &mut HashMap<MapData, Wire<abi::FlowKey>, Wire<abi::Flow>>) {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return };
    let now = Duration::from(now);
    let stale: Vec<Wire<abi::FlowKey>> = flows
        .iter()
        .filter_map(Result::ok)
        .filter(|(_key, flow)| {
            now.saturating_sub(Duration::from_nanos(flow.0.connected_ns)) > FLOW_MAX_AGE
        })
        .map(|(key, _flow)| key)
        .collect();
    for key in stale {
        // Gone meanwhile is as good.
        if let Err(error) = flows.remove(&key) {
            tracing::debug!(%error, "a stale record was gone already");
        }
    }
}

fn flow_of(flow: &abi::Flow) -> Flow {
    let original = flow.original;
    let pid = original.pid;
    Flow {
        original_dst: OriginalDst(SocketAddr::new(ip_of(original.address), original.port)),
        process: Process { pid, comm: comm_of(&original.comm), exe: executable_of(pid) },
        cgroup_id: original.cgroup_id,
    }
}

/// The path of a live process's executable, as `/proc` has it.
fn executable_of(pid: u32) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(path.to_string_lossy().into_owned())
}

/// `comm` without its NUL padding, whatever bytes the process chose.
pub(super) fn comm_of(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(comm.get(..end).unwrap_or_default()).into_owned()
}

/// An address of the ABI as the standard type; v4-mapped ones as IPv4.
pub(super) fn ip_of(address: abi::Address) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(address.octets())).to_canonical()
}

pub(super) fn address_of(ip: IpAddr) -> abi::Address {
    let v6 = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    abi::Address::from_octets(v6.octets())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_border_in_both_families() {
        for text in ["203.0.113.9", "2001:db8::9", "127.0.0.1", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(ip_of(address_of(ip)), ip);
        }
    }

    #[test]
    fn comm_ends_at_the_first_nul_and_may_fill_its_field() {
        assert_eq!(comm_of(b"curl\0\0\0\0\0\0\0\0\0\0\0\0"), "curl");
        assert_eq!(comm_of(b"sixteen-bytes-ab"), "sixteen-bytes-ab");
    }
}
