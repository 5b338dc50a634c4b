//! How a frame tells whose it is: every attempt marks what it sends, by payload, port or group.
//!
//! Pure. A mark names the pass too, so that a frame that comes late counts where it was sent.

use std::net::{Ipv4Addr, Ipv6Addr};

/// One attempt in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Mark(u16);

/// Marks are ports from here on: above the well-known ones, below the ephemeral ones (Linux: 32768).
const FIRST: u16 = 20_000;
/// Attempts in a pass.
const ROWS_MAX: u16 = 100;
/// Passes.
const PASSES: u16 = 3;

/// What stands before the mark in a payload.
const PREFIX: &[u8] = b"tollgate-attempt:";
/// Groups whose last two bytes are a mark (organisation-local scope, RFC 2365).
const GROUP_V4: [u8; 2] = [239, 84];
/// Groups whose last two bytes are a mark (site-local scope).
const GROUP_V6: [u8; 14] = [0xff, 0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0x74, 0x67, 0x61, 0x74];

impl Mark {
    /// The mark of a row in a pass; `None` beyond the room that there is.
    pub(super) fn of(pass: usize, row: usize) -> Option<Self> {
        let (pass, row) = (u16::try_from(pass).ok()?, u16::try_from(row).ok()?);
        (pass < PASSES && row < ROWS_MAX).then(|| Self(FIRST + pass * ROWS_MAX + row))
    }

    pub(super) fn from_port(port: u16) -> Option<Self> {
        (FIRST..FIRST + PASSES * ROWS_MAX).contains(&port).then_some(Self(port))
    }

    pub(super) fn port(self) -> u16 {
        self.0
    }

    pub(super) fn payload(self) -> Vec<u8> {
        [PREFIX, &self.0.to_be_bytes()].concat()
    }

    pub(super) fn group_v4(self) -> Ipv4Addr {
        let [high, low] = self.0.to_be_bytes();
        let [a, b] = GROUP_V4;
        Ipv4Addr::new(a, b, high, low)
    }

    pub(super) fn group_v6(self) -> Ipv6Addr {
        let mut octets = [0; 16];
        for (to, from) in octets.iter_mut().zip(GROUP_V6.into_iter().chain(self.0.to_be_bytes())) {
            *to = from;
        }
        Ipv6Addr::from(octets)
    }

    /// Whose this Ethernet frame is.
    pub(super) fn on(frame: &[u8]) -> Option<Self> {
        [PREFIX, &GROUP_V6]
            .into_iter()
            .find_map(|prefix| after(frame, prefix))
            .or_else(|| ports(frame).and_then(|ports| ports.into_iter().find_map(Self::from_port)))
            .or_else(|| after(frame, &GROUP_V4))
    }
}

/// The mark behind the first `prefix` that has one.
fn after(frame: &[u8], prefix: &[u8]) -> Option<Mark> {
    frame.windows(prefix.len() + 2).find_map(|window| {
        let (head, mark) = window.split_at_checked(prefix.len())?;
        let mark: [u8; 2] = mark.try_into().ok()?;
        (head == prefix).then(|| Mark::from_port(u16::from_be_bytes(mark))).flatten()
    })
}

/// Source and destination port of TCP, UDP and UDP-Lite.
fn ports(frame: &[u8]) -> Option<[u16; 2]> {
    let (protocol, payload) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(frame.get(14)? & 0x0f) * 4;
            (*frame.get(23)?, frame.get(14 + header..)?)
        }
        [0x86, 0xdd] => past_extensions(*frame.get(20)?, frame.get(54..)?)?,
        _other => return None,
    };
    let [a, b, c, d] = *payload.first_chunk::<4>()?;
    matches!(protocol, 6 | 17 | 136)
        .then(|| [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
}

/// The upper layer behind hop-by-hop, routing and destination headers (RFC 8200).
fn past_extensions(mut next: u8, mut rest: &[u8]) -> Option<(u8, &[u8])> {
    while matches!(next, 0 | 43 | 60) {
        let [following, length] = *rest.first_chunk::<2>()?;
        rest = rest.get((usize::from(length) + 1) * 8..)?;
        next = following;
    }
    Some((next, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ethernet(kind: u16, rest: &[u8]) -> Vec<u8> {
        [&[0; 12], &kind.to_be_bytes()[..], rest].concat()
    }

    fn ipv4(protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let words = u8::try_from(5 + options.len() / 4).unwrap();
        let mut header = vec![0; 20];
        header[0] = 0x40 | words;
        header[9] = protocol;
        ethernet(0x0800, &[&header, options, payload].concat())
    }

    fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = vec![0; 40];
        header[0] = 0x60;
        header[6] = next;
        ethernet(0x86dd, &[&header, rest].concat())
    }

    #[test]
    fn a_mark_is_found_by_port_payload_and_group_in_every_kind_of_frame() {
        let mark = Mark::of(1, 42).unwrap();
        assert_eq!(mark.port(), 20_142);
        let port = mark.port().to_be_bytes();
        let to = [&[0, 99], &port[..], &[0; 16]].concat();
        let from = [&port[..], &[0, 99], &[0; 16]].concat();
        let routing = [&[6, 2, 4, 0][..], &[0; 20]].concat();
        let frames = [
            ("to a port", ipv4(6, &[], &to)),
            ("from a port", ipv4(17, &[], &from)),
            ("behind options", ipv4(6, &[0; 12], &to)),
            ("UDP-Lite", ipv4(136, &[], &to)),
            ("version 6", ipv6(17, &to)),
            ("behind a routing header", ipv6(43, &[routing, to].concat())),
            ("payload", ipv4(253, &[], &mark.payload())),
            ("any ether type", ethernet(0x88b5, &mark.payload())),
            ("IGMP", ipv4(2, &[0; 4], &mark.group_v4().octets())),
            ("MLD", ipv6(0, &[&[58, 0][..], &[0; 6], &mark.group_v6().octets()].concat())),
        ];
        for (what, frame) in frames {
            assert_eq!(Mark::on(&frame), Some(mark), "{what}");
        }
    }

    #[test]
    fn other_frames_and_every_prefix_of_one_have_no_mark_or_the_right_one() {
        let mark = Mark::of(0, 0).unwrap();
        let port = mark.port().to_be_bytes();
        let frame = ipv4(6, &[], &[&[0, 99], &port[..], &[0; 16]].concat());
        for length in 0..=frame.len() {
            let found = Mark::on(&frame[..length]);
            assert!(found.is_none() || found == Some(mark), "{length}");
        }
        let stranger = ipv4(6, &[], &[0, 99, 0, 80, 0, 0]);
        assert_eq!(Mark::on(&stranger), None);
        assert_eq!(Mark::of(3, 0), None);
        assert_eq!(Mark::of(0, 100), None);
    }
}
