//! Bytes → query, and answer → bytes.
//!
//! The reader takes exactly what a stub resolver sends: one question in plain labels, nothing in the answer and
//! authority sections, at most one OPT record, and no byte more. Invariant: a pure function of the bytes; it sees
//! whole messages (a datagram, or what TCP framed), so that an incomplete message is a malformed one.

use std::fmt;

use hickory_proto::op::{Edns as OptRecord, Message, OpCode, Query as WireQuestion, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

use crate::net::HostName;

/// What some bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A query that can be answered.
    Query(Query),
    /// A query that is answered with an error, whatever it asks.
    Refuse(Refusal),
    /// A response, or too short to be answered: silence, so that two servers never answer each other.
    Ignore,
}

/// What an answer must repeat of its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    id: u16,
    opcode: u8,
    recursion_desired: bool,
    checking_disabled: bool,
    question: Option<Question>,
    edns: Option<Edns>,
}

/// One well-formed query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// What is asked.
    pub question: Question,
    /// What the answer repeats.
    pub envelope: Envelope,
}

/// A query that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The code it is refused with.
    pub code: ResponseCode,
    /// What is wrong with it.
    pub detail: &'static str,
    /// What the answer repeats.
    pub envelope: Envelope,
}

/// Name and type asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct Question {
    /// The name as it was spelt: stub resolvers vary the case and compare (0x20).
    spelling: Name,
    host: Option<HostName>,
    record_type: u16,
    class: u16,
}

/// The client's OPT record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    version: u8,
    payload_max: u16,
    dnssec_ok: bool,
}

/// How a query came and how its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram each.
    Udp,
    /// Framed by two bytes of length.
    Tcp,
}

/// Reads one message. Never panics and never looks further than `bytes`.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut reader = Reader { rest: bytes };
    let Some((mut envelope, is_response, counts)) = read_header(&mut reader) else {
        return Parsed::Ignore;
    };
    if is_response {
        return Parsed::Ignore;
    }
    match read_body(&mut reader, &mut envelope, counts) {
        Ok(question) => Parsed::Query(Query { question, envelope }),
        Err((code, detail)) => Parsed::Refuse(Refusal { code, detail, envelope }),
    }
}

// === impl Envelope ===

impl Envelope {
    /// The answer with `code` and `records` in wire form; over UDP without the records, and marked as truncated, where
    /// they would not fit. `None` only when not even that can be written.
    #[must_use]
    pub fn reply(
        &self,
        code: ResponseCode,
        records: Vec<Record>,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let mut message = Message::response(self.id, OpCode::from_u8(self.opcode));
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.response_code = code;
        if let Some(question) = &self.question {
            message.add_query(question.to_wire());
        }
        if let Some(edns) = self.edns {
            let mut opt = OptRecord::new();
            opt.set_max_payload(UDP_PAYLOAD_MAX).set_version(0).set_dnssec_ok(edns.dnssec_ok);
            message.set_edns(opt);
        }
        message.add_answers(records);
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= self.bytes_max(transport) => Some(bytes),
            Ok(_) | Err(_) => {
                message.answers.clear();
                message.metadata.truncation = transport == Transport::Udp;
                if transport == Transport::Tcp {
                    // There is no larger transport to come back with.
                    message.metadata.response_code = ResponseCode::ServFail;
                }
                message.to_vec().ok()
            }
        }
    }

    fn bytes_max(&self, transport: Transport) -> usize {
        match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => self.edns.map_or(UDP_PAYLOAD_MIN, |edns| {
                edns.payload_max.clamp(UDP_PAYLOAD_MIN_EDNS, UDP_PAYLOAD_MAX).into()
            }),
        }
    }

    /// The question, where one could be read.
    #[must_use]
    pub fn question(&self) -> Option<&Question> {
        self.question.as_ref()
    }
}

// === impl Question ===

impl Question {
    /// The canonical name, where the name asked for is a host name.
    #[must_use]
    pub fn host(&self) -> Option<&HostName> {
        self.host.as_ref()
    }

    /// The name as it was spelt.
    #[must_use]
    pub fn spelling(&self) -> &Name {
        &self.spelling
    }

    /// The type asked for.
    #[must_use]
    pub fn record_type(&self) -> RecordType {
        RecordType::from(self.record_type)
    }

    /// `A`, `TXT`, `TYPE65400`.
    #[must_use]
    pub fn type_name(&self) -> String {
        match self.record_type() {
            RecordType::Unknown(code) => format!("TYPE{code}"),
            known => known.to_string(),
        }
    }

    /// The name for people and logs: at most 253 characters, everything unusual escaped.
    #[must_use]
    pub fn text(&self) -> String {
        match &self.host {
            Some(host) => host.to_string(),
            None if self.spelling.is_root() => ".".to_owned(),
            None => {
                let text = self.spelling.to_ascii();
                let text = text.strip_suffix('.').unwrap_or(&text);
                text.chars().take(TEXT_MAX_CHARS).collect()
            }
        }
    }

    fn to_wire(&self) -> WireQuestion {
        let mut question = WireQuestion::query(self.spelling.clone(), self.record_type());
        question.set_query_class(DNSClass::from(self.class));
        question
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.type_name(), self.text())
    }
}

// === reading ===

/// QDCOUNT, ANCOUNT, NSCOUNT, ARCOUNT.
type Counts = [u16; 4];

/// Why a query is refused.
type Fault = (ResponseCode, &'static str);

fn read_header(reader: &mut Reader<'_>) -> Option<(Envelope, bool, Counts)> {
    let id = reader.u16()?;
    let flags = reader.u16()?;
    let counts = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    let [_, opcode_bits] = (flags >> 11 & 0x0f).to_be_bytes();
    let envelope = Envelope {
        id,
        opcode: opcode_bits,
        recursion_desired: flags & 0x0100 != 0,
        checking_disabled: flags & 0x0010 != 0,
        question: None,
        edns: None,
    };
    Some((envelope, flags & 0x8000 != 0, counts))
}

fn read_body(
    reader: &mut Reader<'_>,
    envelope: &mut Envelope,
    [questions, answers, authorities, additionals]: Counts,
) -> Result<Question, Fault> {
    if envelope.opcode != OPCODE_QUERY {
        return Err((ResponseCode::NotImp, "only standard queries are answered"));
    }
    if questions != 1 {
        return Err((ResponseCode::FormErr, "a query has exactly one question"));
    }
    let question = read_question(reader).ok_or(MALFORMED_QUESTION)?;
    envelope.question = Some(question.clone());
    if answers != 0 || authorities != 0 {
        return Err((ResponseCode::FormErr, "a query has no answers"));
    }
    match additionals {
        0 => {}
        1 => envelope.edns = Some(read_opt(reader).ok_or(MALFORMED_OPT)?),
        _ => return Err((ResponseCode::FormErr, "more than one additional record")),
    }
    if !reader.rest.is_empty() {
        return Err((ResponseCode::FormErr, "bytes after the end of the query"));
    }
    if envelope.edns.is_some_and(|edns| edns.version != 0) {
        return Err((ResponseCode::BADVERS, "only EDNS version 0 is spoken"));
    }
    if question.class != CLASS_IN {
        return Err((ResponseCode::Refused, "only the class IN is answered"));
    }
    Ok(question)
}

fn read_question(reader: &mut Reader<'_>) -> Option<Question> {
    let mut labels: Vec<&[u8]> = Vec::new();
    let mut name_bytes = 1;
    loop {
        let length = usize::from(reader.u8()?);
        if length == 0 {
            break;
        }
        name_bytes += length + 1;
        // Longer "labels" are pointers or extended types: neither has a place in the first name of a message.
        if length > LABEL_MAX_BYTES || name_bytes > NAME_MAX_BYTES {
            return None;
        }
        labels.push(reader.take(length)?);
    }
    let host = host_of(&labels);
    let mut spelling = Name::from_labels(labels).ok()?;
    spelling.set_fqdn(true);
    Some(Question { spelling, host, record_type: reader.u16()?, class: reader.u16()? })
}

/// The host name that `labels` spell. A dot *inside* a label makes no host name: `a.b` in one label is another name
/// than `a.b` in two, and only the latter is what policy speaks of.
fn host_of(labels: &[&[u8]]) -> Option<HostName> {
    let plain =
        |label: &&[u8]| label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if !labels.iter().all(plain) {
        return None;
    }
    let text = labels.join(&b'.');
    HostName::parse(std::str::from_utf8(&text).ok()?).ok()
}

fn read_opt(reader: &mut Reader<'_>) -> Option<Edns> {
    let (name, record_type) = (reader.u8()?, reader.u16()?);
    if name != 0 || record_type != TYPE_OPT {
        return None;
    }
    let payload_max = reader.u16()?;
    let (_extended_code, version) = (reader.u8()?, reader.u8()?);
    let flags = reader.u16()?;
    let length = reader.u16()?;
    let mut options = Reader { rest: reader.take(length.into())? };
    while !options.rest.is_empty() {
        let (_code, length) = (options.u16()?, options.u16()?);
        options.take(length.into())?;
    }
    Some(Edns { version, payload_max, dnssec_ok: flags & 0x8000 != 0 })
}

/// What is left of a message.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        let (taken, rest) = self.rest.split_first_chunk::<2>()?;
        self.rest = rest;
        Some(u16::from_be_bytes(*taken))
    }
}

const MALFORMED_QUESTION: Fault = (ResponseCode::FormErr, "the question is malformed");
const MALFORMED_OPT: Fault =
    (ResponseCode::FormErr, "the additional record is no well-formed OPT record");

const OPCODE_QUERY: u8 = 0;
const CLASS_IN: u16 = 1;
const TYPE_OPT: u16 = 41;

/// RFC 1035 section 2.3.4.
const LABEL_MAX_BYTES: usize = 63;
/// RFC 1035 section 2.3.4, length bytes and the root included.
const NAME_MAX_BYTES: usize = 255;

/// Largest answer over UDP without EDNS (RFC 1035 section 2.3.4).
const UDP_PAYLOAD_MIN: usize = 512;
/// EDNS sizes below this mean this (RFC 6891 section 6.2.3).
const UDP_PAYLOAD_MIN_EDNS: u16 = 512;
/// Largest answer over UDP whatever the client offers: fits every path without fragments (DNS flag day 2020).
pub(super) const UDP_PAYLOAD_MAX: u16 = 1232;

/// Length of a name in logs.
const TEXT_MAX_CHARS: usize = 253;
