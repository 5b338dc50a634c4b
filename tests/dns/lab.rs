//! A world whose internet has a name server of its own, and queries of the tests' own making.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, RecordType};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::common::has_program;
use crate::common::origin::Origin;
use crate::common::running::Ended;
use crate::common::world::{INTERNET, World};
use crate::zone::Zone;

/// The address of the internet's name server.
pub(crate) const ZONE: &str = "203.0.113.49";

/// A server that is nowhere: queries to it are answered all the same.
pub(crate) const NOWHERE: &str = "203.0.113.53";

/// The agent of every lab.
pub(crate) const AGENT: &str = "worker";

/// What most tests permit: one name alone, and everything below another.
pub(crate) const RULES: &str = r#"
[[agent]]
name = "worker"
[[rule]]
name = "named"
hosts = ["mail.test", "gone.test", "v4.test", "v6.test", "empty.test", "slow.test", "twin.test", "nothere.corp.test", "db.corp.test"]
action = "allow"
[[rule]]
name = "wild"
hosts = ["*.wild.test"]
action = "allow"
"#;

pub(crate) struct Lab {
    pub(crate) world: World,
    pub(crate) zone: Zone,
}

impl Lab {
    /// A world under these rules; `None` where that is not possible and nobody insists.
    pub(crate) fn new(rules: &str) -> Option<Self> {
        let world = World::new().filter(|_| has_program("python3"))?;
        let address = SocketAddr::new(ZONE.parse().unwrap(), 53);
        let zone = world.in_internet(move || Zone::serve(address));
        let lab = Self { world, zone };
        lab.configure(rules);
        lab.host_resolver(&format!("nameserver {ZONE}\n"));
        lab.zone.set("v4.test", vec![v4("203.0.113.41")]);
        lab.zone.set("v6.test", vec![v6("2001:db8::41")]);
        lab.zone.set("empty.test", Vec::new());
        Some(lab)
    }

    /// Writes the configuration anew.
    pub(crate) fn configure(&self, rules: &str) {
        self.world.configure(rules);
        let path = self.world.path("tollgate.toml");
        let text = fs::read_to_string(&path).unwrap();
        let (before, after) = (format!("\"{INTERNET}:53\""), format!("\"{ZONE}:53\""));
        assert!(text.contains(&before), "{text}");
        fs::write(&path, text.replace(&before, &after)).unwrap();
    }

    /// Replaces the resolv.conf of the world's machine.
    pub(crate) fn host_resolver(&self, text: &str) {
        assert!(Path::new(RESOLV_CONF).is_file(), "a machine without {RESOLV_CONF}");
        let file = self.world.path("resolv.conf");
        fs::write(&file, text).unwrap();
        self.world.host.run(move || {
            mount(Some(&file), RESOLV_CONF, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        });
    }

    /// A web server on the internet, with its name.
    pub(crate) fn origin(&self, name: &str) -> Origin {
        let origin = self.world.origin(name);
        self.zone.set(name, vec![RData::A(A(origin.v4)), RData::AAAA(AAAA(origin.v6))]);
        origin
    }

    /// Takes the steps as the agent, in one run; what came back for each.
    #[track_caller]
    pub(crate) fn ask(&self, steps: &[String]) -> Vec<Vec<Message>> {
        let ended = self.world.run(AGENT, &words(&ask_words(steps)));
        answers(&ended, steps.len())
    }

    /// The same without Tollgate.
    #[track_caller]
    pub(crate) fn ask_ungoverned(&self, steps: &[String]) -> Vec<Vec<Message>> {
        let ended = self.world.start_ungoverned(&[], &words(&ask_words(steps))).wait();
        answers(&ended, steps.len())
    }

    /// One question over UDP.
    #[track_caller]
    pub(crate) fn ask_one(&self, name: &str, record_type: RecordType) -> Message {
        self.ask(&[udp(&[&query(name, record_type)])]).remove(0).remove(0)
    }

    /// The records about DNS with this reason.
    pub(crate) fn records_of(&self, reason: &str) -> Vec<Value> {
        let mut records = self.world.audit_of("dns");
        records.retain(|record| record["reason"] == reason);
        records
    }
}

/// A step: one datagram to a server that is nowhere.
pub(crate) fn udp(messages: &[&[u8]]) -> String {
    step("udp", NOWHERE, messages)
}

/// A step: messages in one segment to a server that is nowhere.
pub(crate) fn tcp(messages: &[&[u8]]) -> String {
    step("tcp", NOWHERE, messages)
}

/// A step of the script, which knows what the words mean.
pub(crate) fn step(transport: &str, server: &str, messages: &[&[u8]]) -> String {
    let mut step = format!("{transport},{server}");
    for message in messages {
        step.push(',');
        message.iter().for_each(|byte| step.push_str(&format!("{byte:02x}")));
    }
    step
}

/// A query as stub resolvers send it.
pub(crate) fn query(name: &str, record_type: RecordType) -> Vec<u8> {
    query_message(name, record_type).to_vec().unwrap()
}

pub(crate) fn query_message(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, record_type));
    message
}

/// The same with an OPT record.
pub(crate) fn query_with_edns(name: &str, record_type: RecordType, payload: u16) -> Vec<u8> {
    let mut message = query_message(name, record_type);
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message.to_vec().unwrap()
}

pub(crate) fn v4(address: &str) -> RData {
    RData::A(A(address.parse().unwrap()))
}

pub(crate) fn v6(address: &str) -> RData {
    RData::AAAA(AAAA(address.parse().unwrap()))
}

/// The addresses in an answer that holds nothing else.
#[track_caller]
pub(crate) fn addresses(message: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(a) => IpAddr::V4(a.0),
        RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
        other => panic!("no address: {other:?}"),
    };
    message.answers.iter().map(|record| address(&record.data)).collect()
}

/// Whether an address stands for a name.
pub(crate) fn is_synthetic(address: IpAddr) -> bool {
    gateway::dns::SyntheticPool::contains(address)
}

pub(crate) fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

/// Python's real path: what stands in `PATH` may be a script that looks for it each time.
pub(crate) fn python() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let mut python = Command::new("python3");
        let output = python.args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    })
}

/// Path of a file of the tests.
pub(crate) fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "fixtures", name].iter().collect()
}

pub(crate) fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn ask_words(steps: &[String]) -> Vec<String> {
    let script = fixture("dns_ask.py").display().to_string();
    [python().to_owned(), script].into_iter().chain(steps.iter().cloned()).collect()
}

#[track_caller]
fn answers(ended: &Ended, steps: usize) -> Vec<Vec<Message>> {
    let lines: Vec<&str> = ended.ok().lines().collect();
    assert_eq!(lines.len(), steps, "{ended:#?}");
    let message = |hex: &str| {
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16);
        let bytes: Result<Vec<u8>, _> = (0..hex.len()).step_by(2).map(byte).collect();
        Message::from_vec(&bytes.unwrap_or_else(|_| panic!("{ended:#?}"))).unwrap()
    };
    lines.iter().map(|line| line.split_whitespace().map(message).collect()).collect()
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
