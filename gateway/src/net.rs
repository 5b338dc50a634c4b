//! Newtypes for addresses and names, so that two of them cannot be mixed up.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

/// Where the agent wanted to go, as the kernel recorded it: an untrusted request, never an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OriginalDst(pub SocketAddr);

/// The agent's end of a connection that the gateway accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub SocketAddr);

/// The address of an upstream that the gateway dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamAddr(pub SocketAddr);

/// A host name in canonical form: lower-case A-labels (IDNA), no trailing dot, 1 to 253 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// A host: a canonical name, or an address.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A DNS name.
    Name(HostName),
    /// An address literal. A v4-mapped IPv6 address is held as the IPv4 address that it means.
    Ip(IpAddr),
}

/// Text that is no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing there.
    #[error("the host is empty")]
    Empty,
    /// Longer than a DNS name may be.
    #[error("the host is longer than 253 bytes")]
    TooLong,
    /// Not a DNS name under IDNA (UTS 46, with the STD3 rules and `_` allowed), nor an address.
    #[error("`{host}` is neither a host name nor an address")]
    Malformed {
        /// The text, shortened to 80 characters.
        host: String,
    },
}

/// What of a workload's wires is open. Nothing is, unless the operator says so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Openings {
    /// Who on the same wire may be connected to, past the gateway.
    pub neighbours: Vec<Neighbour>,
    /// Own TCP ports that connections may come in to.
    pub inbound: Vec<u16>,
}

/// Machines on the same wire, and one TCP port of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// Their addresses.
    pub network: Ipv4Net,
    /// The port.
    pub port: u16,
}

/// Text that names no neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NeighbourError {
    /// Not of the form `10.0.0.0/24:5432`.
    #[error("it is not a network and a port")]
    Malformed,
    /// An IPv6 network.
    #[error("IPv6 neighbours are not supported")]
    Ipv6,
    /// Loopback, multicast, unspecified or reserved.
    #[error("nobody on a wire has such an address")]
    NotOnAWire,
    /// A network larger than any wire.
    #[error("the network is larger than /8")]
    TooLarge,
    /// Port 53.
    #[error("DNS always goes to the gateway")]
    Dns,
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.network, self.port)
    }
}

impl FromStr for Neighbour {
    type Err = NeighbourError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (network, port) = text.rsplit_once(':').ok_or(NeighbourError::Malformed)?;
        let bare = network.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<Ipv6Net>().is_ok() || bare.parse::<Ipv6Addr>().is_ok() {
            return Err(NeighbourError::Ipv6);
        }
        let network = network.parse::<Ipv4Net>().or_else(|_not_a_network| {
            network
                .parse::<Ipv4Addr>()
                .map(Ipv4Net::from)
                .map_err(|_neither| NeighbourError::Malformed)
        })?;
        let port = port.parse::<u16>().map_err(|_no_port| NeighbourError::Malformed)?;
        let first = network.network();
        if network.prefix_len() < NEIGHBOUR_PREFIX_MIN {
            return Err(NeighbourError::TooLarge);
        }
        if first.octets()[0] == 0 || first.is_loopback() || first.octets()[0] >= 224 {
            return Err(NeighbourError::NotOnAWire);
        }
        match port {
            0 => Err(NeighbourError::Malformed),
            53 => Err(NeighbourError::Dns),
            port => Ok(Self { network: network.trunc(), port }),
        }
    }
}

/// The shortest prefix of a neighbour's network: more is a mistake, not a wire.
const NEIGHBOUR_PREFIX_MIN: u8 = 8;

/// How a request travels to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain text.
    Http,
    /// Over verified TLS.
    Https,
}

/// Where a request goes: what policy matches, what is dialled and what the certificate must name.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Plain or over TLS.
    pub scheme: Scheme,
    /// Canonical host.
    pub host: Host,
    /// TCP port.
    pub port: u16,
}

// === impl HostName ===

impl HostName {
    /// Canonicalises `text`: IDNA to A-labels, lower case, one trailing dot removed.
    ///
    /// # Errors
    /// When it is no DNS name, or when it would be read as an IPv4 address (`127.1`, `0x7f000001`) by some client.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        let malformed = || HostError::Malformed { host: text.chars().take(80).collect() };
        let ascii = if text.is_ascii() {
            // The common case keeps `_` (service names, some CDNs), which strict IDNA would refuse.
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii_strict(text).map_err(|_errors| malformed())?
        };
        if ascii.len() > HOST_NAME_MAX_BYTES {
            return Err(HostError::TooLong);
        }
        let well_formed = ascii.split('.').all(is_label);
        // WHATWG: a name whose last label is numeric is an IPv4 address to browsers and many libraries.
        let last_is_number = ascii.rsplit('.').next().is_some_and(|label| {
            label.bytes().all(|b| b.is_ascii_digit()) || is_hexadecimal_number(label)
        });
        if well_formed && !last_is_number { Ok(Self(Arc::from(ascii))) } else { Err(malformed()) }
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn is_hexadecimal_number(label: &str) -> bool {
    label.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// RFC 1035 section 2.3.4 leaves 253 bytes for the text form.
const HOST_NAME_MAX_BYTES: usize = 253;

// === impl Host ===

impl Host {
    /// Parses a host as it stands in a URL or a Host field, without port: a name, an IPv4 address, or an IPv6
    /// address in square brackets.
    ///
    /// # Errors
    /// When it is none of them. Spellings of IPv4 addresses other than four decimal numbers are refused.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return match inner.parse::<Ipv6Addr>() {
                Ok(address) => Ok(Self::from_ip(IpAddr::V6(address))),
                Err(_not_v6) => Err(HostError::Malformed { host: text.chars().take(80).collect() }),
            };
        }
        match text.parse::<Ipv4Addr>() {
            Ok(address) => Ok(Self::Ip(IpAddr::V4(address))),
            Err(_not_v4) => HostName::parse(text).map(Self::Name),
        }
    }

    /// The host that an address is, v4-mapped ones as IPv4.
    #[must_use]
    pub fn from_ip(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }
}

// === impl Scheme ===

impl Scheme {
    /// `http` or `https`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// 80 or 443.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

// === impl Destination ===

impl Destination {
    /// `host`, or `host:port` where the port is not the scheme's own: what stands in a Host field.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

// === text forms ===

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Ip(IpAddr::V4(address)) => address.fmt(f),
            Self::Ip(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority())
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_an_ipv4_network_on_a_wire_and_a_port() {
        let rows = [
            ("10.0.0.0/24:5432", Ok(("10.0.0.0/24", 5432))),
            ("10.0.0.9/24:5432", Ok(("10.0.0.0/24", 5432))),
            ("172.17.0.3:6379", Ok(("172.17.0.3/32", 6379))),
            ("10.0.0.0/24", Err(NeighbourError::Malformed)),
            ("10.0.0.0/24:0", Err(NeighbourError::Malformed)),
            ("10.0.0.0/24:65536", Err(NeighbourError::Malformed)),
            ("10.0.0.0/33:1", Err(NeighbourError::Malformed)),
            ("db:5432", Err(NeighbourError::Malformed)),
            ("[fd00::/64]:5432", Err(NeighbourError::Ipv6)),
            ("fd00::5:5432", Err(NeighbourError::Ipv6)),
            ("0.0.0.0/0:443", Err(NeighbourError::TooLarge)),
            ("127.0.0.0/8:80", Err(NeighbourError::NotOnAWire)),
            ("239.0.0.0/8:80", Err(NeighbourError::NotOnAWire)),
            ("10.0.0.2:53", Err(NeighbourError::Dns)),
        ];
        for (text, expected) in rows {
            let expected = expected
                .map(|(network, port)| Neighbour { network: network.parse().unwrap(), port });
            assert_eq!(text.parse::<Neighbour>(), expected, "{text}");
        }
    }

    #[test]
    fn spellings_of_one_host_become_one_host() {
        let rows = [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("[::1]", "[::1]"),
            ("[2001:DB8:0:0::1]", "[2001:db8::1]"),
            ("[::ffff:192.0.2.1]", "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1"),
            ("_dmarc.example.com", "_dmarc.example.com"),
        ];
        for (text, canonical) in rows {
            assert_eq!(
                Host::parse(text).map(|h| h.to_string()).as_deref(),
                Ok(canonical),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let long = "a.".repeat(127) + "aa";
        for text in [
            "",
            ".",
            "a..b",
            "a b",
            "-a.example",
            "a-.example",
            "127.1",
            "0x7f000001",
            "1.2.3.4.5",
            "[::1",
            "::1",
            "a/b",
            "user@host",
            "exa\u{0}mple",
            "a:80",
            "*.example.com",
            "example.com..",
            long.as_str(),
        ] {
            assert!(Host::parse(text).is_err(), "{text:?}");
        }
    }
}
