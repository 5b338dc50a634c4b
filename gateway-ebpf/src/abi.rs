//! Every type, constant and map name on the border between kernel and user space, written once.
//!
//! Rules of the border: `repr(C)`, explicit padding, no `bool`, `usize` or enum with data; byte order is in the
//! name where it is not the host's; sizes are asserted below and checked against the built object by a test.

mod bucket;
mod refusal;

pub use bucket::*;
pub use refusal::*;

/// Version of the layout of all maps. It stands in the names of pinned maps: whoever changes the key, value, number of
/// entries or meaning of a map raises it, so that programs of another version never meet them.
pub const VERSION: u32 = 2;

/// A type that may cross the border as raw bytes.
///
/// # Safety
/// The type is `repr(C)`, has no padding and no invalid bit pattern, so that any bytes of its size are a value of it.
#[expect(unsafe_code, reason = "the safety contract of the border lives on this trait")]
pub unsafe trait Abi: Copy + 'static {}

/// Name of the map `netns cookie → Workload`. Written by the gateway, read by hooks that see an address or port.
pub const WORKLOADS: &str = "WORKLOADS";
/// Key of [`WORKLOADS`] for hooks that cannot ask for the cookie of a namespace; no namespace has it. What stands there
/// is what stands under the workload's own.
pub const ANY_NAMESPACE: u64 = 0;
/// Name of the socket storage that holds an [`Original`]. Written at connect and sendmsg.
pub const ORIGINALS: &str = "ORIGINALS";
/// Name of the map `FlowKey → Flow`. Written at TCP_CONNECT_CB, read and deleted once at accept.
pub const FLOWS: &str = "FLOWS";

/// Name of the map of the workload's own addresses. Written by the gateway.
pub const OWN: &str = "OWN";
/// Name of the trie of neighbours' ports and networks ([`neighbour_key`]). Written by the gateway.
pub const NEIGHBOURS: &str = "NEIGHBOURS";
/// Name of the map of ports that connections may come in to. Written by the gateway.
pub const PUBLISHED: &str = "PUBLISHED";
/// Name of the map `index of the host's end of a wire → Device`. Written by the gateway.
pub const DEVICES: &str = "DEVICES";
/// Name of the map of the indices of the workload's ends of fenced wires. Written by the gateway.
pub const INSIDE: &str = "INSIDE";
/// Name of the map `ArrivalKey → Arrival`. Written and read by the programs at the wire.
pub const ARRIVALS: &str = "ARRIVALS";
/// Name of the map `IPv4 address → Hardware`. Written by the gateway first, and by the programs at the wire, who read it.
pub const NEIGHBOUR_HARDWARE: &str = "NEIGHBOUR_HARDWARE";

/// Name of the map `cgroup id → nanoseconds of CLOCK_BOOTTIME`: the cgroups that the gate of the slice lets through, and
/// since when. Under [`GATE_ITSELF`] it says since when the gate is closed. Written by the gateway.
pub const ADMITTED: &str = "ADMITTED";
/// Key of [`ADMITTED`] that no cgroup has.
pub const GATE_ITSELF: u64 = 0;
/// Entries of [`ADMITTED`]: what comes beyond them stays closed.
pub const ADMITTED_MAX: usize = 16_384;
/// How many levels below the root the gate of the slice looks for an admitted cgroup; what is deeper, and below none,
/// stays closed.
pub const SLICE_DEPTH_MAX: i32 = 32;

/// Entries of [`OWN`]: more addresses than these are not local.
pub const OWN_MAX: usize = 256;
/// Entries of [`NEIGHBOURS`]: two for each neighbour.
pub const NEIGHBOURS_MAX: usize = 128;
/// Entries of [`PUBLISHED`].
pub const PUBLISHED_MAX: usize = 64;
/// Entries of [`DEVICES`] and [`INSIDE`]: a workload with more wires stays closed.
pub const DEVICES_MAX: usize = 64;
/// Entries of [`ARRIVALS`]: of more connections at a time, the oldest are cut.
pub const ARRIVALS_MAX: usize = 4_096;
/// Entries of [`NEIGHBOUR_HARDWARE`]; who was pushed out has to be asked again.
pub const NEIGHBOUR_HARDWARE_MAX: usize = 512;

/// Entries of [`FLOWS`]: connections between connect and accept, and those whose SYN was never answered, until they
/// are swept. A full map refuses new connections (no record → the gateway resets); it never evicts.
pub const FLOWS_MAX: usize = 16_384;
/// Entries of [`WORKLOADS`].
pub const WORKLOADS_MAX: usize = 1_024;
/// Index of the loopback device, the same in every network namespace (`LOOPBACK_IFINDEX` in the kernel).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// An IPv6 address in network byte order, IPv4 as `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// The four 32-bit words of the address as they lie in memory on the wire.
    pub words_be: [u32; 4],
}

/// One governed network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Port of the gateway's listeners, TCP and UDP.
    pub gateway_port: u16,
    /// [`HAS_IPV6`] or 0.
    pub flags: u16,
    /// Explicit padding to the key's alignment.
    pub pad: u32,
}

/// Flag of [`Workload`]: the gateway listens on `::1` as well.
pub const HAS_IPV6: u16 = 1;

/// Where a socket wanted to go, stored on the socket itself.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Original {
    /// The destination that the process named.
    pub address: Address,
    /// Its port.
    pub port: u16,
    /// [`NOT_REDIRECTED`] or [`REDIRECTED`].
    pub state: u16,
    /// Thread group id of the process, in the initial PID namespace.
    pub pid: u32,
    /// Cgroup of the task that connected: a cross-check, not an identity.
    pub cgroup_id: u64,
    /// Its `comm`, NUL-padded.
    pub comm: [u8; 16],
}

/// State of an [`Original`]: the socket talks to the workload's own loopback.
pub const NOT_REDIRECTED: u16 = 0;
/// State of an [`Original`]: the socket talks to the gateway and believes it talks to `address`.
pub const REDIRECTED: u16 = 1;

/// What identifies a connection at accept.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowKey {
    /// Cookie of the network namespace: taken from the socket, so no workload can write under another's.
    pub netns_cookie: u64,
    /// The client's own address. Part of the key because sockets with different loopback sources may share a port.
    pub client: Address,
    /// The client's own port.
    pub client_port: u16,
    /// The gateway's port.
    pub gateway_port: u16,
    /// Explicit padding.
    pub pad: u32,
}

/// What the gateway learns of a connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Where the process wanted to go.
    pub original: Original,
    /// `CLOCK_MONOTONIC` at TCP_CONNECT_CB, in nanoseconds.
    pub connected_ns: u64,
}

/// What may pass one wire.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    /// Hardware address of the workload's end.
    pub hardware: [u8; 6],
    /// [`HAS_NEIGHBOURS`] and [`HAS_INBOUND`]; 0 for a wire that nothing passes.
    pub flags: u16,
}

/// Flag of [`Device`]: neighbours may be reached.
pub const HAS_NEIGHBOURS: u16 = 1;
/// Flag of [`Device`]: connections may come in.
pub const HAS_INBOUND: u16 = 2;

/// What identifies a connection that came in. Addresses in network byte order, ports in the host's.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArrivalKey {
    /// Who connected.
    pub far: [u8; 4],
    /// To which own address.
    pub near: [u8; 4],
    /// From which port.
    pub far_port: u16,
    /// To which own port.
    pub near_port: u16,
}

/// A connection that came in.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// `CLOCK_MONOTONIC` of its last segment from outside, in nanoseconds.
    pub heard_ns: u64,
    /// The machine on the wire that it comes through.
    pub hardware: [u8; 6],
    /// Which sides have ended it.
    pub ended: u8,
    /// Explicit padding.
    pub pad: u8,
}

/// A hardware address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hardware {
    /// Its bytes.
    pub octets: [u8; 6],
    /// Explicit padding.
    pub pad: u16,
}

/// Bits of a whole [`neighbour_key`].
pub const NEIGHBOUR_BITS: u32 = 48;
/// Bits of the port that a [`neighbour_key`] begins with.
pub const NEIGHBOUR_PORT_BITS: u32 = 16;

/// The key of [`NEIGHBOURS`]: port, then address, in network byte order; the network's prefix follows the port's bits.
#[must_use]
#[inline(always)]
pub const fn neighbour_key(address: [u8; 4], port: u16) -> [u8; 6] {
    let port = port.to_be_bytes();
    [port[0], port[1], address[0], address[1], address[2], address[3]]
}

// SAFETY: repr(C), bytes and an integer that fill it (asserted below).
#[expect(unsafe_code, reason = "implements the border's marker")]
unsafe impl Abi for Device {}
// SAFETY: repr(C), bytes and an integer that fill it (asserted below).
#[expect(unsafe_code, reason = "implements the border's marker")]
unsafe impl Abi for Hardware {}
// SAFETY: repr(C), four u32 words, no padding.
#[expect(unsafe_code, reason = "implements the border's marker")]
unsafe impl Abi for Address {}
// SAFETY: repr(C), integers that fill it (asserted below).
#[expect(unsafe_code, reason = "implements the border's marker")]
unsafe impl Abi for Workload {}
// SAFETY: repr(C), integers that fill it (asserted below).
#[expect(unsafe_code, reason = "implements the border's marker")]
unsafe impl Abi for Original {}
// SAFETY: repr(C), integers that fill it (asserted below).
#[expect(unsafe_code, reason = "implements the border's marker")]
unsafe impl Abi for FlowKey {}
// SAFETY: repr(C), integers that fill it (asserted below).
#[expect(unsafe_code, reason = "implements the border's marker")]
unsafe impl Abi for Flow {}
// The sum of the fields is the size: there is no hidden padding.
const _: () = assert!(size_of::<Address>() == 16);
const _: () = assert!(size_of::<Workload>() == 2 + 2 + 4);
const _: () = assert!(size_of::<Original>() == 16 + 2 + 2 + 4 + 8 + 16);
const _: () = assert!(size_of::<FlowKey>() == 8 + 16 + 2 + 2 + 4);
const _: () = assert!(size_of::<Flow>() == size_of::<Original>() + 8);
const _: () = assert!(size_of::<Device>() == 6 + 2);
const _: () = assert!(size_of::<ArrivalKey>() == 4 + 4 + 2 + 2);
const _: () = assert!(size_of::<Arrival>() == 8 + 6 + 1 + 1);
const _: () = assert!(size_of::<Hardware>() == 6 + 2);

impl Address {
    /// The words that stand before an IPv4 address in its v4-mapped form.
    const MAPPED_PREFIX_BE: u32 = 0x0000_ffff_u32.to_be();

    /// `::1`.
    pub const LOOPBACK_V6: Self = Self { words_be: [0, 0, 0, 1_u32.to_be()] };

    /// `::ffff:127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self::from_v4_be(0x7f00_0001_u32.to_be());

    /// All zero: no address.
    pub const NONE: Self = Self { words_be: [0; 4] };

    /// The v4-mapped form of an IPv4 address given in network byte order.
    #[must_use]
    pub const fn from_v4_be(address_be: u32) -> Self {
        Self { words_be: [0, 0, Self::MAPPED_PREFIX_BE, address_be] }
    }

    /// From the sixteen bytes on the wire.
    #[must_use]
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self {
            words_be: [
                u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
                u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
                u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
                u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
            ],
        }
    }

    /// The sixteen bytes on the wire.
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.words_be;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    /// Whether it is an IPv4 address in v4-mapped form.
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.words_be[0] == 0 && self.words_be[1] == 0 && self.words_be[2] == Self::MAPPED_PREFIX_BE
    }

    /// Whether the kernel delivers it to this host's loopback: 127/8, `::1`, and the unspecified addresses.
    #[must_use]
    #[inline(always)]
    pub const fn is_own_loopback(self) -> bool {
        if self.is_v4() {
            let v4 = u32::from_be(self.words_be[3]);
            v4 >> 24 == 127 || v4 == 0
        } else {
            let last = u32::from_be(self.words_be[3]);
            self.words_be[0] == 0 && self.words_be[1] == 0 && self.words_be[2] == 0 && last <= 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn v4(a: u8, b: u8, c: u8, d: u8) -> Address {
        Address::from_v4_be(u32::from_ne_bytes([a, b, c, d]))
    }

    #[test]
    fn octets_and_words_are_two_forms_of_one_address() {
        let octets = [0x20, 0x01, 0x0d, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        assert_eq!(Address::from_octets(octets).octets(), octets);
        assert_eq!(
            v4(203, 0, 113, 9).octets(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 9]
        );
    }

    #[test]
    fn own_loopback_is_exactly_what_the_kernel_delivers_locally_in_a_lo_only_namespace() {
        let yes = [
            v4(127, 0, 0, 1),
            v4(127, 255, 3, 4),
            v4(0, 0, 0, 0),
            Address::LOOPBACK_V6,
            Address::NONE,
        ];
        for address in yes {
            assert!(address.is_own_loopback(), "{address:?}");
        }
        let mut v6_two = Address::LOOPBACK_V6;
        v6_two.words_be[3] = 2_u32.to_be();
        let mut high = Address::LOOPBACK_V6;
        high.words_be[0] = 1;
        for address in [v4(128, 0, 0, 1), v4(0, 0, 0, 1), v4(126, 255, 255, 255), v6_two, high] {
            assert!(!address.is_own_loopback(), "{address:?}");
        }
    }
}
