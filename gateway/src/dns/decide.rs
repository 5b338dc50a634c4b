//! Question → what is answered, and what is written about it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::message::Question;
use super::{Server, SyntheticPool};
use crate::audit::{Decision, Reason};
use crate::config::DeniedName;
use crate::net::HostName;
use crate::upstream::resolve::ResolveError;

/// What is answered to one question.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) code: ResponseCode,
    pub(super) records: Vec<Record>,
    pub(super) reason: Reason,
    pub(super) decision: Decision,
    pub(super) detail: Option<String>,
    /// The part of the time that went into asking upstream servers.
    pub(super) upstream: Duration,
}

/// What a question asks for, as far as the answer differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    V4,
    V6,
    /// The name of an address.
    Pointer,
    /// HTTPS and SVCB: their hints (addresses, ECH keys) would lead around the gateway, so that no name has any. Types
    /// that are not known may be the next of this kind.
    Withheld,
    /// TXT, MX, SRV and the like.
    Records(RecordType),
    /// ANY, transfers, and types that only have a meaning between servers.
    Meta,
}

impl Server {
    /// Decides one question. Asks upstream servers only about names that the gate permits.
    pub(super) async fn decide(&self, question: &Question) -> Outcome {
        let wanted = Wanted::from(question.record_type());
        if wanted == Wanted::Meta {
            return Outcome::refused("queries of this type are not answered");
        }
        let Some(host) = question.host() else {
            return if question.spelling().is_root() {
                Outcome::answered(Vec::new())
            } else {
                Outcome::absent("not a host name")
            };
        };
        if wanted == Wanted::Pointer || is_reverse(host) {
            return self.pointer(question, host, wanted);
        }
        // With everything below it (RFC 6761 section 6.3).
        if lies_below(host, LOCALHOST) {
            return Outcome::answered(self.address(question, wanted, LOCALHOST_ADDRESSES));
        }
        if !host.as_str().contains('.') {
            return Outcome::absent("single-label names do not exist here");
        }
        if self.gate.permits(host) {
            if self.audit.is_failing() {
                // Nobody would know of what is asked. The record of this refusal tries the log again.
                return Outcome::failed(Reason::StateUnavailable, LOG_FAILS.to_owned());
            }
            self.permitted(question, host, wanted).await
        } else {
            self.denied(question, host, wanted)
        }
    }

    async fn permitted(&self, question: &Question, host: &HostName, wanted: Wanted) -> Outcome {
        let started = Instant::now();
        let found = match wanted {
            Wanted::V4 | Wanted::V6 => self.resolver.lookup(host).await.map(|_dialled_later| None),
            Wanted::Records(record_type) => {
                self.resolver.lookup_records(host, record_type).await.map(Some)
            }
            Wanted::Withheld | Wanted::Pointer | Wanted::Meta => Ok(Some(Vec::new())),
        };
        let upstream = started.elapsed();
        let outcome = match found {
            Ok(None) => match self.pool.addresses_of(host) {
                Some(addresses) => Outcome::answered(self.address(question, wanted, addresses)),
                None => Outcome::failed(Reason::RateLimited, POOL_FULL.to_owned()),
            },
            Ok(Some(records)) => Outcome::answered(relayed(question, records)),
            Err(ResolveError::NoData) => Outcome::answered(Vec::new()),
            Err(ResolveError::NotFound) => Outcome::missing(),
            Err(error @ (ResolveError::Failed { .. } | ResolveError::Setup { .. })) => {
                Outcome::failed(Reason::UpstreamUnresolvable, chain(&error))
            }
        };
        Outcome { upstream, ..outcome }
    }

    /// Not async, so that nothing in here can send a packet.
    fn denied(&self, question: &Question, host: &HostName, wanted: Wanted) -> Outcome {
        if self.search.iter().any(|domain| lies_below(host, domain.as_str())) {
            return Outcome::absent("a search domain's names are not invented");
        }
        match (self.denied, wanted) {
            (_, Wanted::Withheld) => Outcome::denied(ResponseCode::NoError, Vec::new()),
            (DeniedName::Refuse, _) => Outcome::denied(ResponseCode::Refused, Vec::new()),
            (DeniedName::Explain, Wanted::V4 | Wanted::V6) => {
                match self.pool.addresses_of_denied(host) {
                    Some(addresses) => Outcome::denied(
                        ResponseCode::NoError,
                        self.address(question, wanted, addresses),
                    ),
                    None => Outcome {
                        detail: Some(POOL_FULL.to_owned()),
                        ..Outcome::denied(ResponseCode::Refused, Vec::new())
                    },
                }
            }
            (DeniedName::Explain, Wanted::Records(_) | Wanted::Pointer | Wanted::Meta) => {
                Outcome::denied(ResponseCode::NoError, Vec::new())
            }
        }
    }

    /// An address of a family that the workload does not have is none: a client that tries one only would fail.
    fn address(
        &self,
        question: &Question,
        wanted: Wanted,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
    ) -> Vec<Record> {
        match wanted {
            Wanted::V4 => vec![own_record(question, RData::A(A(v4)))],
            Wanted::V6 if (self.has_ipv6)() => vec![own_record(question, RData::AAAA(AAAA(v6)))],
            Wanted::V6 | Wanted::Pointer | Wanted::Withheld | Wanted::Records(_) | Wanted::Meta => {
                Vec::new()
            }
        }
    }

    /// Only synthetic addresses have names: whom an address belongs to is not asked of anybody.
    fn pointer(&self, question: &Question, host: &HostName, wanted: Wanted) -> Outcome {
        let Some(name) = reverse_address(host).and_then(|address| self.pool.name_of(address))
        else {
            return Outcome::absent("only synthetic addresses have names");
        };
        if wanted != Wanted::Pointer {
            return Outcome::answered(Vec::new());
        }
        match absolute(&name) {
            Some(name) => Outcome::answered(vec![own_record(question, RData::PTR(PTR(name)))]),
            None => Outcome::absent("the address has no name"),
        }
    }
}

// === impl Outcome ===

impl Outcome {
    fn new(code: ResponseCode, reason: Reason, decision: Decision) -> Self {
        let (records, detail, upstream) = (Vec::new(), None, Duration::ZERO);
        Self { code, records, reason, decision, detail, upstream }
    }

    fn answered(records: Vec<Record>) -> Self {
        Self { records, ..Self::new(ResponseCode::NoError, Reason::DnsAnswered, Decision::Allow) }
    }

    /// The upstream servers say that the name does not exist.
    fn missing() -> Self {
        Self::new(ResponseCode::NXDomain, Reason::DnsNxdomain, Decision::Allow)
    }

    /// The gateway says that the name does not exist, without asking.
    fn absent(detail: &str) -> Self {
        Self {
            detail: Some(detail.to_owned()),
            ..Self::new(ResponseCode::NXDomain, Reason::DnsNxdomain, Decision::Block)
        }
    }

    fn refused(detail: &str) -> Self {
        Self {
            detail: Some(detail.to_owned()),
            ..Self::new(ResponseCode::Refused, Reason::DnsRefused, Decision::Block)
        }
    }

    fn failed(reason: Reason, detail: String) -> Self {
        Self { detail: Some(detail), ..Self::new(ResponseCode::ServFail, reason, Decision::Block) }
    }

    fn denied(code: ResponseCode, records: Vec<Record>) -> Self {
        Self { records, ..Self::new(code, Reason::BlockedByDefaultPolicy, Decision::Block) }
    }
}

// === impl Wanted ===

impl From<RecordType> for Wanted {
    fn from(record_type: RecordType) -> Self {
        match (record_type, u16::from(record_type)) {
            (RecordType::A, _) => Self::V4,
            (RecordType::AAAA, _) => Self::V6,
            (RecordType::PTR, _) => Self::Pointer,
            // RFC 6895 section 3.1: 0 is reserved, 128 to 255 are questions and meta types; OPT is one as well.
            (_, 0 | 41 | 128..=255) => Self::Meta,
            (RecordType::HTTPS | RecordType::SVCB | RecordType::Unknown(_), _) => Self::Withheld,
            _ => Self::Records(record_type),
        }
    }
}

// === records ===

fn own_record(question: &Question, data: RData) -> Record {
    Record::from_rdata(question.spelling().clone(), SYNTHETIC_TTL_SECONDS, data)
}

const LOCALHOST_ADDRESSES: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);

/// What an upstream server may tell the agent: records of the type asked for, never addresses, which would lead around
/// the synthetic ones. They stand under the name asked for, in its spelling: the aliases on the way do not always come
/// out of the resolver's cache, and a client takes no record whose owner it cannot connect to its question.
fn relayed(question: &Question, records: Vec<Record>) -> Vec<Record> {
    let mut kept: Vec<Record> = records
        .into_iter()
        .filter(|record| record.record_type() == question.record_type())
        .take(RELAYED_RECORDS_MAX)
        .collect();
    for record in &mut kept {
        record.name = question.spelling().clone();
    }
    kept
}

fn absolute(host: &HostName) -> Option<Name> {
    let mut name = Name::from_ascii(host.as_str()).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.chars().take(DETAIL_MAX_CHARS).collect()
}

// === names ===

/// Whether `host` is `domain` or a name below it.
fn lies_below(host: &HostName, domain: &str) -> bool {
    host.as_str().strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn is_reverse(host: &HostName) -> bool {
    [REVERSE_V4, REVERSE_V6].iter().any(|zone| lies_below(host, zone))
}

/// The address whose reverse name `host` is.
fn reverse_address(host: &HostName) -> Option<IpAddr> {
    let labels_below = |zone: &str| host.as_str().strip_suffix(zone)?.strip_suffix('.');
    if let Some(labels) = labels_below(REVERSE_V4) {
        let octets: Vec<&str> = labels.rsplit('.').collect();
        return octets.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let labels = labels_below(REVERSE_V6)?;
    let mut bits = 0_u128;
    let mut count = 0;
    for nibble in labels.rsplit('.') {
        if nibble.len() != 1 || count == NIBBLES {
            return None;
        }
        bits = bits << 4 | u128::from_str_radix(nibble, 16).ok()?;
        count += 1;
    }
    (count == NIBBLES)
        .then(|| IpAddr::V6(Ipv6Addr::from_bits(bits)))
        .filter(|address| SyntheticPool::contains(*address))
}

const LOCALHOST: &str = "localhost";
const REVERSE_V4: &str = "in-addr.arpa";
const REVERSE_V6: &str = "ip6.arpa";

/// Hexadecimal digits of an IPv6 address.
const NIBBLES: usize = 32;

const POOL_FULL: &str = "the workload has used up its synthetic addresses";

const LOG_FAILS: &str = "the audit log cannot be written";

/// Short, so that a name which policy opens or closes, or which appears or vanishes, is asked for again soon.
pub(super) const SYNTHETIC_TTL_SECONDS: u32 = 60;

/// Most records relayed in one answer; they must fit a message anyway.
const RELAYED_RECORDS_MAX: usize = 200;

/// Length of an error text in an audit record.
const DETAIL_MAX_CHARS: usize = 300;
