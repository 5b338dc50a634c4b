//! Messages that no resolver sends: an error or silence, and the next query is answered.

use hickory_proto::op::{MessageType, ResponseCode};
use hickory_proto::rr::RecordType;

use crate::lab::*;

/// What is wrong, the message, what it is answered with (none: silence).
type Row = (&'static str, Vec<u8>, Option<u16>);

const FORMERR: Option<u16> = Some(1);
const NOTIMP: Option<u16> = Some(4);
const REFUSED: Option<u16> = Some(5);
const BADVERS: Option<u16> = Some(16);

fn good() -> Vec<u8> {
    query("v4.test", RecordType::A)
}

fn edns() -> Vec<u8> {
    query_with_edns("v4.test", RecordType::A, 1232)
}

/// The good query with another byte, counted from its end where the place is negative.
fn edited(at: isize, byte: u8) -> Vec<u8> {
    let mut bytes = good();
    let at = at.rem_euclid(bytes.len().try_into().unwrap());
    bytes[usize::try_from(at).unwrap()] = byte;
    bytes
}

/// The query with EDNS with another byte in its OPT record.
fn edited_opt(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = edns();
    bytes[good().len() + at] = byte;
    bytes
}

/// The head of the good query, with another byte.
fn head(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = good()[..12].to_vec();
    bytes[at] = byte;
    bytes
}

fn named(name: &[u8]) -> Vec<u8> {
    [&good()[..12], name, &[0, 1, 0, 1]].concat()
}

fn label(length: usize) -> Vec<u8> {
    [&[u8::try_from(length).unwrap()][..], &vec![b'a'; length]].concat()
}

fn cut_or_too_long() -> Vec<Row> {
    let (good, edns) = (good(), edns());
    vec![
        ("one byte", vec![0x12], None),
        ("a cut head", good[..11].to_vec(), None),
        ("a head alone", good[..12].to_vec(), FORMERR),
        ("a cut name", good[..15].to_vec(), FORMERR),
        ("a cut type", good[..good.len() - 3].to_vec(), FORMERR),
        ("a cut class", good[..good.len() - 1].to_vec(), FORMERR),
        ("a cut OPT record", edns[..edns.len() - 1].to_vec(), FORMERR),
        ("a byte at the end", [&good[..], &[0]].concat(), FORMERR),
        ("a kilobyte at the end", [&good[..], &[0xaa; 1024]].concat(), FORMERR),
        ("the control", good, Some(0)),
        ("the control with EDNS", edns, Some(0)),
    ]
}

fn sections() -> Vec<Row> {
    let (good, edns) = (good(), edns());
    let opt = &edns[good.len()..];
    let long_option = [&edns[..edns.len() - 2], &[0, 4, 0, 10, 0, 200]].concat();
    vec![
        ("no question", edited(5, 0), FORMERR),
        ("no question and no bytes of one", head(5, 0), FORMERR),
        ("two questions", [&edited(5, 2)[..], &good[12..]].concat(), FORMERR),
        ("65281 questions", edited(4, 0xff), FORMERR),
        ("an answer that is not there", edited(7, 1), FORMERR),
        ("an authority that is not there", edited(9, 1), FORMERR),
        ("an additional record that is not there", edited(11, 1), FORMERR),
        ("65280 additional records", edited(10, 0xff), FORMERR),
        ("two OPT records", [&edited(11, 2)[..], opt, opt].concat(), FORMERR),
        ("an additional record that is no OPT", edited_opt(2, 1), FORMERR),
        ("an OPT record with a name", edited_opt(0, 1), FORMERR),
        ("an OPT record longer than the message", edited_opt(9, 0xff), FORMERR),
        ("an option longer than its record", long_option, FORMERR),
        ("EDNS version 1", edited_opt(6, 1), BADVERS),
        ("EDNS version 255", edited_opt(6, 255), BADVERS),
    ]
}

fn names() -> Vec<Row> {
    let longest = [&label(63).repeat(3)[..], &label(61), &[0]].concat();
    vec![
        ("a pointer to itself", named(&[0xc0, 12]), FORMERR),
        ("a pointer to the head", named(&[0xc0, 0]), FORMERR),
        ("a pointer behind the end", named(&[0xff, 0xff]), FORMERR),
        ("a label and a pointer to it", named(&[1, b'a', 0xc0, 12]), FORMERR),
        ("half a pointer", [&good()[..12], &[0xc0]].concat(), FORMERR),
        ("an extended label", named(&[0x41, 1, 0]), FORMERR),
        ("a reserved label", named(&[0x81, 1, 0]), FORMERR),
        ("a label of 64 bytes", named(&[&label(64)[..], &[0]].concat()), FORMERR),
        ("a name of 257 bytes", named(&[&label(63).repeat(4)[..], &[0]].concat()), FORMERR),
        ("labels without end", named(&label(1).repeat(200)), FORMERR),
        ("the control, a name of 255 bytes", named(&longest), Some(0)),
    ]
}

fn kinds() -> Vec<Row> {
    vec![
        ("a response", edited(2, 0x81), None),
        ("a response that is no more than a head", head(2, 0x80), None),
        ("an inverse query", edited(2, 1 << 3), NOTIMP),
        ("a status query", edited(2, 2 << 3), NOTIMP),
        ("a notification", edited(2, 4 << 3), NOTIMP),
        ("an update", edited(2, 5 << 3), NOTIMP),
        ("opcode 15", edited(2, 15 << 3), NOTIMP),
        ("class CH", edited(-1, 3), REFUSED),
        ("class NONE", edited(-1, 254), REFUSED),
        ("class ANY", edited(-1, 255), REFUSED),
        ("type 0", edited(-3, 0), REFUSED),
        ("type OPT", edited(-3, 41), REFUSED),
        ("a transfer", edited(-3, 252), REFUSED),
    ]
}

fn rows() -> Vec<Row> {
    [cut_or_too_long(), sections(), names(), kinds()].concat()
}

#[test]
fn what_is_no_query_gets_an_error_or_silence_and_the_next_query_an_answer() {
    let Some(lab) = Lab::new(RULES) else { return };
    let mut good = query_message("v6.test", RecordType::A);
    good.metadata.id = 0x4321;
    let good = good.to_vec().unwrap();
    let mut steps = Vec::new();
    for (_, message, expected) in &rows() {
        steps.push(match expected {
            Some(_) => udp(&[message]),
            None => step("silent", NOWHERE, &[message, &good]),
        });
        steps.push(tcp(&[message]));
    }
    steps.push(udp(&[&good]));
    let answers = lab.ask(&steps);
    for ((what, message, expected), answers) in rows().iter().zip(answers.chunks(2)) {
        for (transport, answers) in ["udp", "tcp"].iter().zip(answers) {
            let id = u16::from_be_bytes([message[0], *message.get(1).unwrap_or(&0)]);
            let of_message = answers.iter().find(|answer| answer.metadata.id == id);
            let seen = of_message.map(|answer| u16::from(code(answer)));
            assert_eq!(seen, *expected, "{what} over {transport}: {answers:?}");
            if let Some(answer) = of_message {
                assert_eq!(answer.metadata.message_type, MessageType::Response, "{what}");
            }
            // Silence over UDP is followed by the answer to the next datagram, over TCP by the end.
            let others = usize::from(expected.is_none() && *transport == "udp");
            assert_eq!(answers.len(), usize::from(expected.is_some()) + others, "{what}");
        }
    }
    let last = &answers[answers.len() - 1][0];
    assert_eq!((code(last), last.answers.len()), (ResponseCode::NoError, 1));
    // What is wrong with a query stands in the audit log.
    let refused = lab.records_of("dns_refused");
    assert!(refused.iter().all(|record| record["decision"] == "block"));
    assert!(refused.iter().any(|record| record["detail"] == "a query has exactly one question"));
    assert!(lab.zone.names().iter().all(|name| name.starts_with('v')), "{:?}", lab.zone.names());
}
