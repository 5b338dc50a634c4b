//! name ↔ synthetic address: private addresses that stand for exactly one name of one workload.
//!
//! A flow to such an address tells the gateway which name the agent meant, for every protocol. An address is never
//! given to a second name as long as the workload lives; when there is no room the name is refused.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{PoisonError, RwLock};

use aws_lc_rs::digest;

use crate::net::HostName;

/// The synthetic addresses of one workload.
#[derive(Debug, Default)]
pub struct SyntheticPool {
    table: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_name: HashMap<HostName, Index>,
    by_index: HashMap<Index, HostName>,
    /// Names that came in through [`SyntheticPool::addresses_of_denied`].
    denied: usize,
}

/// Place of a name in both address ranges: below [`INDICES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Index(u32);

// === impl SyntheticPool ===

impl SyntheticPool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The name that `address` was given to, if it was.
    #[must_use]
    pub fn name_of(&self, address: IpAddr) -> Option<HostName> {
        let index = Index::of(address)?;
        self.table.read().unwrap_or_else(PoisonError::into_inner).by_index.get(&index).cloned()
    }

    /// The addresses of `name`, always the same ones; `None` when the pool is full.
    ///
    /// They start from a digest of the name, so that an address that an agent remembers from before a restart of the
    /// gateway means the same name afterwards (unless two names of the workload collide).
    #[must_use]
    pub fn addresses_of(&self, name: &HostName) -> Option<(Ipv4Addr, Ipv6Addr)> {
        self.index_of(name, NAMES_MAX, Grant::Permitted).map(Index::addresses)
    }

    /// As [`Self::addresses_of`], for a name that policy denies. These may fill only a part of the pool: an agent
    /// that asks for many names in vain does not lose the ones it may use.
    #[must_use]
    pub fn addresses_of_denied(&self, name: &HostName) -> Option<(Ipv4Addr, Ipv6Addr)> {
        self.index_of(name, DENIED_NAMES_MAX, Grant::Denied).map(Index::addresses)
    }

    /// Whether `address` lies in the ranges of synthetic addresses, given out or not.
    #[must_use]
    pub fn contains(address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => v4.to_bits() & V4_MASK == V4_BASE,
            IpAddr::V6(v6) => v6.to_bits() & V6_MASK == V6_BASE,
        }
    }

    fn index_of(&self, name: &HostName, names_max: usize, grant: Grant) -> Option<Index> {
        let known = |table: &Table| table.by_name.get(name).copied();
        if let Some(index) = known(&self.table.read().unwrap_or_else(PoisonError::into_inner)) {
            return Some(index);
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        // Another task may have been faster between the two locks.
        if let Some(index) = known(&table) {
            return Some(index);
        }
        let held = match grant {
            Grant::Permitted => table.by_name.len(),
            Grant::Denied => table.denied,
        };
        if held >= names_max || table.by_name.len() >= NAMES_MAX {
            return None;
        }
        let first = preferred_index(name);
        let free = (0..INDICES)
            .map(|step| Index((first + step) % INDICES))
            .find(|index| !table.by_index.contains_key(index))?;
        table.by_name.insert(name.clone(), free);
        table.by_index.insert(free, name.clone());
        if grant == Grant::Denied {
            table.denied += 1;
        }
        Some(free)
    }
}

/// On whose account a name takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grant {
    Permitted,
    Denied,
}

// === impl Index ===

impl Index {
    fn addresses(self) -> (Ipv4Addr, Ipv6Addr) {
        let (block, host) = (self.0 / HOSTS_PER_BLOCK, self.0 % HOSTS_PER_BLOCK + 1);
        let v4 = Ipv4Addr::from_bits(V4_BASE | (block << 8) | host);
        let v6 = Ipv6Addr::from_bits(V6_BASE | (u128::from(self.0) + 1));
        (v4, v6)
    }

    /// The inverse of [`Self::addresses`]; `None` for every address that it never makes.
    fn of(address: IpAddr) -> Option<Self> {
        if !SyntheticPool::contains(address) {
            return None;
        }
        let index = match address.to_canonical() {
            IpAddr::V4(v4) => {
                let offset = v4.to_bits() & !V4_MASK;
                let (block, host) = (offset >> 8, offset & 0xff);
                if !(1..=HOSTS_PER_BLOCK).contains(&host) {
                    return None;
                }
                block * HOSTS_PER_BLOCK + host - 1
            }
            IpAddr::V6(v6) => u32::try_from(v6.to_bits() & !V6_MASK).ok()?.checked_sub(1)?,
        };
        (index < INDICES).then_some(Self(index))
    }
}

/// Where the search for a free place starts. A cryptographic digest, because the agent chooses the names and could
/// otherwise make them all collide.
fn preferred_index(name: &HostName) -> u32 {
    let hash = digest::digest(&digest::SHA256, name.as_str().as_bytes());
    let start = hash.as_ref().iter().take(4).fold(0_u32, |sum, byte| (sum << 8) | u32::from(*byte));
    start % INDICES
}

// === limits and ranges ===

/// 198.18.0.0/15: set aside for benchmarks (RFC 2544), so never a destination on the internet.
const V4_BASE: u32 = Ipv4Addr::new(198, 18, 0, 0).to_bits();
const V4_MASK: u32 = 0xfffe_0000;

/// fd00:746f:6c6c:6761::/64, a unique local prefix (RFC 4193); its digits spell "tollga".
const V6_BASE: u128 = Ipv6Addr::new(0xfd00, 0x746f, 0x6c6c, 0x6761, 0, 0, 0, 0).to_bits();
const V6_MASK: u128 = !0 << 64;

/// `.0` and `.255` are left out of every block of 256: some programs take them for network and broadcast.
const HOSTS_PER_BLOCK: u32 = 254;

/// Blocks of 256 addresses in a /15.
const BLOCKS: u32 = 512;

/// Places in the pool.
const INDICES: u32 = HOSTS_PER_BLOCK * BLOCKS;

/// Names of one workload, permitted and denied: about 10 MiB at worst, and few enough of all places that a search for
/// a free one is short.
pub(super) const NAMES_MAX: usize = 16_384;

/// Denied names of one workload.
pub(super) const DENIED_NAMES_MAX: usize = NAMES_MAX / 2;

const _: () = assert!(NAMES_MAX < INDICES as usize / 4, "probing stays short");

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    #[test]
    fn an_address_gives_back_exactly_the_name_it_was_given_to() {
        let pool = SyntheticPool::new();
        for number in 0..2000 {
            let host = name(&format!("host-{number}.example.com"));
            let (v4, v6) = pool.addresses_of(&host).unwrap();
            assert_eq!(pool.name_of(v4.into()), Some(host.clone()));
            assert_eq!(pool.name_of(v6.into()), Some(host.clone()));
            assert_eq!(pool.name_of(v4.to_ipv6_mapped().into()), Some(host.clone()));
            assert_eq!(pool.addresses_of(&host), Some((v4, v6)));
            assert!(!matches!(v4.octets()[3], 0 | 255), "{v4}");
        }
    }

    #[test]
    fn addresses_are_the_same_in_a_new_pool() {
        let host = name("api.example.com");
        let before = SyntheticPool::new().addresses_of(&host);
        let pool = SyntheticPool::new();
        assert!(pool.addresses_of(&name("other.example.com")).is_some());
        assert_eq!(pool.addresses_of(&host), before);
    }

    #[test]
    fn every_index_is_one_address_of_each_family_and_back() {
        for index in (0..INDICES).map(Index) {
            let (v4, v6) = index.addresses();
            assert_eq!(Index::of(v4.into()), Some(index));
            assert_eq!(Index::of(v6.into()), Some(index));
        }
    }

    #[test]
    fn addresses_that_were_never_given_out_have_no_name() {
        let pool = SyntheticPool::new();
        assert!(pool.addresses_of(&name("api.example.com")).is_some());
        for address in [
            "198.17.255.254",
            "198.18.0.0",
            "198.18.0.255",
            "198.19.255.255",
            "198.20.0.1",
            "127.0.0.1",
            "fd00:746f:6c6c:6761::",
            "fd00:746f:6c6c:6761:1::1",
            "fd00:746f:6c6c:6762::1",
            "fd00:746f:6c6c:6761:ffff:ffff:ffff:ffff",
            "::1",
        ] {
            assert_eq!(pool.name_of(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn a_full_pool_refuses_new_names_and_keeps_the_old_ones() {
        let pool = SyntheticPool::new();
        for number in 0..NAMES_MAX {
            assert!(pool.addresses_of(&name(&format!("{number}.example.com"))).is_some());
        }
        assert_eq!(pool.addresses_of(&name("one.more.example.com")), None);
        assert_eq!(pool.addresses_of_denied(&name("one.more.example.com")), None);
        let (v4, _v6) = pool.addresses_of(&name("0.example.com")).unwrap();
        assert_eq!(pool.name_of(v4.into()), Some(name("0.example.com")));
    }

    #[test]
    fn denied_names_leave_room_for_permitted_ones() {
        let pool = SyntheticPool::new();
        for number in 0..DENIED_NAMES_MAX {
            assert!(pool.addresses_of_denied(&name(&format!("{number}.denied.example"))).is_some());
        }
        assert_eq!(pool.addresses_of_denied(&name("more.denied.example")), None);
        assert!(pool.addresses_of(&name("permitted.example.com")).is_some());
        // A name that policy permits meanwhile keeps its addresses.
        let before = pool.addresses_of_denied(&name("7.denied.example"));
        assert_eq!(pool.addresses_of(&name("7.denied.example")), before);
    }

    #[test]
    fn tasks_that_ask_at_the_same_time_agree() {
        let pool = SyntheticPool::new();
        let answers: Vec<_> = std::thread::scope(|scope| {
            let ask = || {
                (0..200)
                    .map(|n| pool.addresses_of(&name(&format!("{n}.example"))))
                    .collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
