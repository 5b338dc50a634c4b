use super::*;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const DEVICE: Device = Device { hardware: OWN, flags: 0 };
const PUBLISHED: Device = Device { hardware: OWN, flags: HAS_INBOUND };

fn packet(edit: impl FnOnce(&mut [u8; IPV4_BYTES])) -> Option<Ipv4> {
    let mut bytes = [0; IPV4_BYTES];
    bytes[0] = 0x45;
    bytes[3] = 40;
    bytes[6] = 0x40;
    bytes[9] = 6;
    bytes[12..16].copy_from_slice(&[10, 0, 0, 2]);
    bytes[16..20].copy_from_slice(&[10, 0, 0, 3]);
    edit(&mut bytes);
    ipv4(&bytes)
}

#[test]
fn only_whole_tcp_segments_without_options_are_read() {
    let plain = Some(Ipv4 { from: [10, 0, 0, 2], to: [10, 0, 0, 3], length: 40 });
    assert_eq!(packet(|_| {}), plain);
    assert_eq!(packet(|b| b[6] = 0), plain, "may be fragmented, is not");
    assert_eq!(packet(|b| b[0] = 0x46), None, "options");
    assert_eq!(packet(|b| b[0] = 0x65), None, "another version");
    assert_eq!(packet(|b| b[6] = 0x20), None, "the first fragment");
    assert_eq!(packet(|b| b[7] = 1), None, "a later fragment");
    assert_eq!(packet(|b| b[6] = 0x80), None, "the reserved bit");
    for protocol in [0, 1, 2, 4, 17, 41, 47, 132, 136, 255] {
        assert_eq!(packet(|b| b[9] = protocol), None, "protocol {protocol}");
    }
}

#[test]
fn a_frame_leaves_only_under_the_own_address_and_to_one_receiver() {
    let frame = |from, to| Ethernet { to, from, kind: IPV4 };
    let group = [1, 0, 0x5e, 0, 0, 1];
    let rows = [
        (frame(OWN, OTHER), Direction::Out, false, true),
        (frame(OTHER, OWN), Direction::Out, false, false),
        (frame(OWN, group), Direction::Out, false, false),
        (frame(OWN, group), Direction::Out, true, false),
        (frame(OWN, BROADCAST), Direction::Out, false, false),
        (frame(OWN, BROADCAST), Direction::Out, true, true),
        (frame(OTHER, OWN), Direction::In, false, true),
        (frame(OTHER, OTHER), Direction::In, false, false),
        (frame(OTHER, group), Direction::In, true, false),
        (frame(OTHER, BROADCAST), Direction::In, false, false),
        (frame(OTHER, BROADCAST), Direction::In, true, true),
    ];
    for (frame, direction, broadcast, expected) in rows {
        assert_eq!(
            is_addressed(frame, DEVICE, direction, broadcast),
            expected,
            "{frame:?} {direction:?}"
        );
    }
}

#[test]
fn nothing_stands_behind_a_packet_that_leaves() {
    assert!(has_length(54, 40, Direction::Out));
    assert!(!has_length(60, 40, Direction::Out));
    assert!(!has_length(53, 40, Direction::Out));
    assert!(has_length(54, 40, Direction::In));
    assert!(has_length(60, 40, Direction::In), "hardware fills up");
    assert!(!has_length(61, 40, Direction::In));
    assert!(!has_length(61, 48, Direction::In));
}

const NOBODY: Ends =
    Ends { is_own: true, is_neighbour: false, is_published: false, has_come_in: false };

#[test]
fn a_neighbour_is_connected_to_and_connects_to_nobody() {
    let ends = Ends { is_neighbour: true, ..NOBODY };
    let rows = [
        (Direction::Out, SYN, Verdict::Pass),
        (Direction::Out, ACK, Verdict::Pass),
        (Direction::Out, RST, Verdict::Pass),
        (Direction::In, SYN | ACK, Verdict::Pass),
        (Direction::In, ACK, Verdict::Pass),
        (Direction::In, FIN | ACK, Verdict::Pass),
        (Direction::In, RST, Verdict::Pass),
        (Direction::In, SYN, Verdict::Drop),
        (Direction::Out, 0, Verdict::Drop),
        (Direction::Out, FIN, Verdict::Drop),
        (Direction::In, SYN | FIN, Verdict::Drop),
    ];
    for (direction, flags, expected) in rows {
        assert_eq!(segment(direction, flags, ends), expected, "{direction:?} {flags:#x}");
        assert_eq!(segment(direction, flags, NOBODY), Verdict::Drop, "not a neighbour");
        let spoofed = Ends { is_own: false, ..ends };
        assert_eq!(segment(direction, flags, spoofed), Verdict::Drop, "another's address");
    }
}

#[test]
fn from_a_published_port_only_connections_that_came_in_are_answered() {
    let published = Ends { is_published: true, ..NOBODY };
    let inside = Ends { has_come_in: true, ..published };
    let rows = [
        (Direction::In, SYN, published, Verdict::Begin),
        (Direction::In, SYN, inside, Verdict::Begin),
        (Direction::In, ACK, published, Verdict::Drop),
        (Direction::In, SYN | ACK, published, Verdict::Drop),
        (Direction::In, ACK, inside, Verdict::Continue),
        (Direction::In, FIN | ACK, inside, Verdict::Finish),
        (Direction::In, RST, inside, Verdict::Reset),
        (Direction::Out, SYN | ACK, inside, Verdict::Continue),
        (Direction::Out, ACK, inside, Verdict::Continue),
        (Direction::Out, RST | ACK, inside, Verdict::Reset),
        (Direction::Out, FIN | ACK, inside, Verdict::Finish),
        (Direction::Out, SYN, inside, Verdict::Drop),
        (Direction::Out, SYN, published, Verdict::Drop),
        (Direction::Out, SYN | ACK, published, Verdict::Drop),
        (Direction::Out, ACK, published, Verdict::Drop),
        (Direction::Out, RST, published, Verdict::Drop),
    ];
    for (direction, flags, ends, expected) in rows {
        assert_eq!(segment(direction, flags, ends), expected, "{direction:?} {flags:#x} {ends:?}");
        let closed = Ends { is_published: false, ..ends };
        assert_eq!(segment(direction, flags, closed), Verdict::Drop, "a port that is not open");
    }
}

#[test]
fn a_connection_that_came_in_lives_until_it_is_silent_reset_or_ended_by_both() {
    for direction in [Direction::In, Direction::Out] {
        assert!(lives(direction, IDLE_NS - 1, 0) && !lives(direction, IDLE_NS, 0));
        assert!(lives(direction, IDLE_NS - 1, side(Direction::In)));
        assert!(lives(direction, ENDING_NS - 1, BOTH_ENDED));
        assert!(!lives(direction, ENDING_NS, BOTH_ENDED));
    }
    assert!(!lives(Direction::Out, 0, RESET), "nothing is sent after a reset");
    assert!(lives(Direction::In, 0, RESET), "the reset itself is delivered");
    assert!(!lives(Direction::In, ENDING_NS, RESET));
    assert_eq!(side(Direction::In) | side(Direction::Out), BOTH_ENDED);
}

/// A request of the workload for a neighbour.
const ASKS: Arp = Arp {
    operation: REQUEST,
    sender_hardware: OWN,
    sender: [10, 0, 0, 2],
    target_hardware: [0; 6],
    target: [10, 0, 0, 3],
};
/// Its answer.
const ANSWER: Arp = Arp {
    operation: REPLY,
    sender_hardware: OTHER,
    sender: [10, 0, 0, 3],
    target_hardware: OWN,
    target: [10, 0, 0, 2],
};
const NEIGHBOUR: ArpEnds = ArpEnds { is_own: true, is_neighbour: true, has_spoken: false };
const STRANGER: ArpEnds = ArpEnds { is_neighbour: false, ..NEIGHBOUR };

#[test]
fn a_workload_asks_only_for_neighbours_and_only_under_its_own_addresses() {
    let frame = Ethernet { to: BROADCAST, from: OWN, kind: ARP };
    let passes = |arp, ends| arp_passes(Direction::Out, frame, arp, DEVICE, ends);
    assert!(passes(ASKS, NEIGHBOUR));
    assert!(passes(ASKS, ArpEnds { has_spoken: true, ..STRANGER }));
    assert!(!passes(ASKS, STRANGER));
    assert!(!passes(ASKS, ArpEnds { is_own: false, ..NEIGHBOUR }));
    assert!(!passes(Arp { sender_hardware: OTHER, ..ASKS }, NEIGHBOUR));
    assert!(
        !passes(Arp { target_hardware: OTHER, ..ASKS }, NEIGHBOUR),
        "six bytes of its choosing"
    );
    assert!(!passes(Arp { operation: 3, ..ASKS }, NEIGHBOUR), "reverse ARP");
    assert!(!passes(Arp { target: ASKS.sender, ..ASKS }, NEIGHBOUR), "an announcement");
    let answers = Arp { operation: REPLY, target_hardware: OTHER, ..ASKS };
    let to_one = Ethernet { to: OTHER, ..frame };
    assert!(arp_passes(Direction::Out, to_one, answers, DEVICE, NEIGHBOUR));
    assert!(!arp_passes(Direction::Out, frame, answers, DEVICE, NEIGHBOUR), "to everybody");
    assert!(!arp_passes(Direction::Out, to_one, answers, DEVICE, STRANGER));
}

#[test]
fn a_workload_is_answered_by_neighbours_and_asked_by_strangers_only_when_it_is_published() {
    let frame = Ethernet { to: OWN, from: OTHER, kind: ARP };
    let asked = Arp { operation: REQUEST, target_hardware: [0; 6], ..ANSWER };
    let passes = |arp, device, ends| arp_passes(Direction::In, frame, arp, device, ends);
    assert!(passes(ANSWER, DEVICE, NEIGHBOUR));
    assert!(passes(asked, DEVICE, NEIGHBOUR));
    assert!(!passes(ANSWER, DEVICE, STRANGER));
    assert!(!passes(asked, DEVICE, STRANGER));
    assert!(passes(asked, PUBLISHED, STRANGER));
    assert!(!passes(ANSWER, PUBLISHED, STRANGER), "an answer that nobody asked for");
    assert!(!passes(Arp { sender_hardware: OWN, ..ANSWER }, DEVICE, NEIGHBOUR));
    assert!(!passes(Arp { target_hardware: OTHER, ..ANSWER }, DEVICE, NEIGHBOUR));
    assert!(!passes(ANSWER, DEVICE, ArpEnds { is_own: false, ..NEIGHBOUR }));
}

#[test]
fn arp_for_anything_but_ipv4_over_ethernet_is_not_read() {
    let mut bytes = [0; ARP_BYTES];
    bytes[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    bytes[8..14].copy_from_slice(&OWN);
    bytes[14..18].copy_from_slice(&ASKS.sender);
    bytes[24..28].copy_from_slice(&ASKS.target);
    assert_eq!(arp(&bytes), Some(ASKS));
    for at in 0..6 {
        let mut other = bytes;
        other[at] ^= 0x20;
        assert_eq!(arp(&other), None, "byte {at}");
    }
}
