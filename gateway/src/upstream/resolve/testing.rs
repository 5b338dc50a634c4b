//! An authoritative DNS server of the test's own, on loopback, that counts what reaches it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, MX, SOA, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::Resolver;
use crate::config;

/// The server; its tasks end with the test's runtime.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<(String, RecordType)>>>,
}

impl TestServer {
    /// Starts one for UDP and TCP on the same port of loopback.
    pub(crate) async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The same port may be taken for TCP: then another one.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let for_udp = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, sender)) = udp.recv_from(&mut buffer).await {
                if let Some(answer) = answer(&buffer[..length], false, &for_udp) {
                    udp.send_to(&answer, sender).await.unwrap();
                }
            }
        });
        let for_tcp = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((mut stream, _peer)) = tcp.accept().await {
                let seen = Arc::clone(&for_tcp);
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut query = vec![0; length.into()];
                        stream.read_exact(&mut query).await.unwrap();
                        if let Some(answer) = answer(&query, true, &seen) {
                            stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
                            stream.write_all(&answer).await.unwrap();
                        }
                    }
                });
            }
        });
        Self { address, seen }
    }

    /// A resolver that asks only this server.
    pub(crate) fn resolver(&self, hosts: &[(&str, &[&str])]) -> Resolver {
        let hosts = hosts
            .iter()
            .map(|(name, addresses)| {
                let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
                (crate::net::HostName::parse(name).unwrap(), addresses)
            })
            .collect();
        Resolver::new(&config::Upstream {
            ca_files: Vec::new(),
            hosts,
            resolvers: vec![self.address],
        })
        .unwrap()
    }

    /// How many queries came in, for whatever.
    pub(crate) fn packets(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// How many queries for `name` came in, however it was spelt.
    pub(crate) fn packets_for(&self, name: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(seen, _type)| seen.eq_ignore_ascii_case(name)).count()
    }
}

fn answer(
    query: &[u8],
    over_tcp: bool,
    seen: &Mutex<Vec<(String, RecordType)>>,
) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).unwrap();
    let question = query.queries[0].clone();
    let text = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    seen.lock().unwrap().push((text.clone(), question.query_type()));
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.add_query(question.clone());
    message.metadata.authoritative = true;
    let name = question.name().clone();
    let mut say = |data: RData| {
        message.add_answer(Record::from_rdata(name.clone(), 300, data));
    };
    match (text.as_str(), question.query_type()) {
        ("silent.example.com", _) => return None,
        ("broken.example.com", _) => message.metadata.response_code = ResponseCode::ServFail,
        ("refusing.example.com", _) => message.metadata.response_code = ResponseCode::Refused,
        ("half.example.com", RecordType::AAAA) => {
            message.metadata.response_code = ResponseCode::ServFail;
        }
        ("v6only.example.com", RecordType::A) | ("half-none.example.com", RecordType::AAAA) => {}
        ("half-none.example.com", _) => message.metadata.response_code = ResponseCode::ServFail,
        ("v6only.example.com" | "www.example.com", RecordType::AAAA) => {
            say(RData::AAAA(AAAA("2001:db8::7".parse().unwrap())));
        }
        ("www.example.com" | "half.example.com" | "db.lan.example", RecordType::A) => {
            say(RData::A(A("192.0.2.7".parse().unwrap())));
        }
        ("alias.example.com", _) => {
            say(RData::CNAME(CNAME(Name::from_ascii("www.example.com.").unwrap())));
        }
        ("www.example.com", RecordType::TXT) => {
            say(RData::TXT(TXT::new(vec!["v=spf1 -all".to_owned()])));
        }
        ("www.example.com", RecordType::MX) => {
            say(RData::MX(MX::new(10, Name::from_ascii("mail.example.com.").unwrap())));
        }
        // Too large for one datagram: only TCP gets it whole.
        ("large.example.com", RecordType::TXT) if over_tcp => {
            for number in 0..40 {
                say(RData::TXT(TXT::new(vec![format!("{number:0>100}")])));
            }
        }
        ("large.example.com", RecordType::TXT) => message.metadata.truncation = true,
        ("www.example.com" | "v6only.example.com" | "large.example.com", _) => {}
        ("mailonly.example.com" | "half.example.com" | "db.lan.example", _) => {}
        (many, record_type) if many.ends_with(".many.example.com") => {
            if record_type == RecordType::A {
                say(RData::A(A("192.0.2.8".parse().unwrap())));
            }
        }
        _ => message.metadata.response_code = ResponseCode::NXDomain,
    }
    if message.answers.is_empty() && !message.metadata.truncation {
        message.add_authority(Record::from_rdata(
            Name::from_ascii("example.com.").unwrap(),
            60,
            soa(),
        ));
    }
    Some(message.to_vec().unwrap())
}

fn soa() -> RData {
    let name = |text| Name::from_ascii(text).unwrap();
    RData::SOA(SOA::new(name("ns.example.com."), name("admin.example.com."), 1, 60, 60, 60, 60))
}
