//! A message from the agent: every one is a query, a refusal or silence, and what is answered starts no loop.
#![no_main]

use gateway::dns::message::{self, Parsed, Transport};
use gateway::net::HostName;
use hickory_proto::op::{Message, ResponseCode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (envelope, code) = match message::parse(bytes) {
        Parsed::Query(query) => {
            if let Some(host) = query.question.host() {
                assert_eq!(HostName::parse(host.as_str()).as_ref(), Ok(host));
            }
            assert!(query.question.text().chars().count() <= 253);
            (query.envelope, ResponseCode::NoError)
        }
        Parsed::Refuse(refusal) => (refusal.envelope, refusal.code),
        Parsed::Ignore => return,
    };
    for transport in [Transport::Udp, Transport::Tcp] {
        let Some(reply) = envelope.reply(code, Vec::new(), transport) else { continue };
        assert!(Message::from_vec(&reply).is_ok(), "an answer can be read");
        assert_eq!(message::parse(&reply), Parsed::Ignore, "an answer is never answered");
    }
});
