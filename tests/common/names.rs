//! The DNS of a test's internet.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;

/// The names of one internet. What is not in it does not exist.
#[derive(Clone, Default)]
pub(crate) struct Names {
    addresses: Arc<Mutex<HashMap<String, Vec<IpAddr>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Names {
    /// Starts answering on `address`. Must be called inside a runtime.
    pub(crate) fn serve(address: SocketAddr) -> Self {
        let names = Self::default();
        let socket = std::net::UdpSocket::bind(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = UdpSocket::from_std(socket).unwrap();
        let server = names.clone();
        drop(tokio::spawn(async move {
            let mut bytes = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut bytes).await {
                if let Some(answer) = server.answer(&bytes[..length])
                    && let Err(error) = socket.send_to(&answer, client).await
                {
                    eprintln!("the internet's DNS cannot answer: {error}");
                }
            }
        }));
        names
    }

    /// From now on `name` has these addresses.
    pub(crate) fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.addresses.lock().unwrap().insert(format!("{name}."), addresses.to_vec());
    }

    /// Every name that was asked for, in order, with its last dot.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?.clone();
        let name = question.name().to_string().to_lowercase();
        self.asked.lock().unwrap().push(name.clone());
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.message_type = MessageType::Response;
        answer.metadata.authoritative = true;
        match self.addresses.lock().unwrap().get(&name) {
            None => answer.metadata.response_code = ResponseCode::NXDomain,
            Some(addresses) => {
                for address in addresses {
                    let data = match (address, question.query_type()) {
                        (IpAddr::V4(v4), RecordType::A) => RData::A(A(*v4)),
                        (IpAddr::V6(v6), RecordType::AAAA) => RData::AAAA(AAAA(*v6)),
                        _other_kind => continue,
                    };
                    // Not to be remembered: tests change names.
                    answer.add_answer(Record::from_rdata(question.name().clone(), 0, data));
                }
            }
        }
        answer.add_query(question);
        answer.to_vec().ok()
    }
}
