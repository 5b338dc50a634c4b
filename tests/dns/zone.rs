//! The name server of the tests' internet: every type of record, over UDP and TCP, and a memory of each byte it heard.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

/// What is not in it does not exist.
#[derive(Clone, Default)]
pub(crate) struct Zone(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    records: HashMap<String, Vec<RData>>,
    silent: HashSet<String>,
    heard: Vec<Heard>,
}

/// One query.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    /// As it was spelt, with its last dot.
    pub(crate) name: String,
    pub(crate) record_type: RecordType,
    pub(crate) bytes: Vec<u8>,
}

impl Zone {
    /// Starts answering on `address`. Must be called inside a runtime.
    pub(crate) fn serve(address: SocketAddr) -> Self {
        let zone = Self::default();
        let udp = std::net::UdpSocket::bind(address).unwrap();
        udp.set_nonblocking(true).unwrap();
        let udp = UdpSocket::from_std(udp).unwrap();
        let server = zone.clone();
        drop(tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut bytes).await {
                if let Some(answer) = server.answer(&bytes[..length], UDP_MAX_BYTES) {
                    drop(udp.send_to(&answer, client).await);
                }
            }
        }));
        let tcp = std::net::TcpListener::bind(address).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let tcp = TcpListener::from_std(tcp).unwrap();
        let server = zone.clone();
        drop(tokio::spawn(async move {
            while let Ok((mut stream, _client)) = tcp.accept().await {
                let server = server.clone();
                drop(tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut query = vec![0; length.into()];
                        if stream.read_exact(&mut query).await.is_err() {
                            return;
                        }
                        let Some(answer) = server.answer(&query, usize::from(u16::MAX)) else {
                            continue;
                        };
                        let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                        drop(stream.write_all(&[&length[..], &answer].concat()).await);
                    }
                }));
            }
        }));
        zone
    }

    /// From now on `name` has these records.
    pub(crate) fn set(&self, name: &str, records: Vec<RData>) {
        self.0.lock().unwrap().records.insert(format!("{name}."), records);
    }

    /// From now on no question about `name` is answered.
    pub(crate) fn silence(&self, name: &str) {
        self.0.lock().unwrap().silent.insert(format!("{name}."));
    }

    /// Every query so far, in order.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.0.lock().unwrap().heard.clone()
    }

    /// The names that were asked for so far, sorted, each once.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.heard().into_iter().map(|heard| heard.name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn answer(&self, bytes: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
        let query = Message::from_vec(bytes).ok()?;
        let question = query.queries.first()?.clone();
        let (name, record_type) = (question.name().to_ascii(), question.query_type());
        let mut inner = self.0.lock().unwrap();
        inner.heard.push(Heard { name: name.clone(), record_type, bytes: bytes.to_vec() });
        let name = name.to_ascii_lowercase();
        if inner.silent.contains(&name) {
            return None;
        }
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.message_type = MessageType::Response;
        answer.metadata.authoritative = true;
        match inner.records.get(&name) {
            None => answer.metadata.response_code = ResponseCode::NXDomain,
            Some(records) => {
                let wanted = |data: &&RData| matches!(data.record_type(), found if found == record_type || found == RecordType::CNAME);
                for data in records.iter().filter(wanted) {
                    // Not to be remembered: tests change names.
                    answer.add_answer(Record::from_rdata(question.name().clone(), 0, data.clone()));
                }
            }
        }
        if answer.answers.is_empty() {
            let name = |text| Name::from_ascii(text).unwrap();
            let soa = SOA::new(name("ns.test."), name("admin.test."), 1, 60, 60, 60, 0);
            answer.add_authority(Record::from_rdata(name("test."), 0, RData::SOA(soa)));
        }
        answer.add_query(question);
        let whole = answer.to_vec().unwrap();
        if whole.len() <= bytes_max {
            return Some(whole);
        }
        answer.answers.clear();
        answer.metadata.truncation = true;
        answer.to_vec().ok()
    }
}

/// What fits a datagram without being fragmented on the way.
const UDP_MAX_BYTES: usize = 1232;
