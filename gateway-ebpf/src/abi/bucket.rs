//! Rates: how often a workload may give the gateway something to do.

use super::Abi;

/// Name of the array of the workload's [`Bucket`]s. Filled by the gateway when it arms the workload, drained by the
/// hooks.
pub const BUCKETS: &str = "BUCKETS";
/// Entry of [`BUCKETS`]: TCP connections to the gateway.
pub const BUCKET_CONNECTS: u32 = 0;
/// Entry of [`BUCKETS`]: datagrams to the gateway, all of them DNS.
pub const BUCKET_DATAGRAMS: u32 = 1;
/// Entries of [`BUCKETS`].
pub const BUCKETS_MAX: usize = 2;

/// Connections at once, beside those that the rate lets through: many times what a browser opens for a page, and twice
/// as many as one workload may have open.
pub const CONNECTS_BURST: u32 = 2_048;
/// Nanoseconds from one datagram to the next: 1,000 a second, five times what the resolver answers.
pub const DATAGRAM_INTERVAL_NS: u32 = 1_000_000;
/// Datagrams at once: four times what the resolver answers.
pub const DATAGRAMS_BURST: u32 = 2_048;

/// A token bucket in the form of one point in time (GCRA).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// `CLOCK_MONOTONIC` in nanoseconds when everything let through so far is paid for ("theoretical arrival time").
    pub paid_until_ns: u64,
    /// How far that may lie ahead, in nanoseconds: the interval times the burst.
    pub slack_ns: u64,
    /// What one event costs, in nanoseconds.
    pub interval_ns: u32,
    /// Port of the gateway's listeners, where a hook that sees packets looks for it without a search.
    pub gateway_port: u16,
    /// Explicit padding.
    pub pad: u16,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub const fn new(interval_ns: u32, burst: u32, gateway_port: u16) -> Self {
        // The product of two u32 fits.
        let slack_ns = interval_ns as u64 * burst as u64;
        Self { paid_until_ns: 0, slack_ns, interval_ns, gateway_port, pad: 0 }
    }
}

// SAFETY: repr(C), integers that fill it (asserted below).
#[expect(unsafe_code, reason = "implements the border's marker")]
unsafe impl Abi for Bucket {}

const _: () = assert!(size_of::<Bucket>() == 8 + 8 + 4 + 2 + 2);
