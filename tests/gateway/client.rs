//! Clients inside the workload.

use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::common::world::World;

/// What curl got.
#[derive(Debug)]
pub(crate) struct Reply {
    /// As in `HTTP/2`.
    pub(crate) version: String,
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body of one of the gateway's own answers.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:#?}"))
    }

    /// The `error` of one of the gateway's own answers.
    #[track_caller]
    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().expect("an error").to_owned()
    }

    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let version = words.next().unwrap_or_default().to_owned();
        let status = words.next().and_then(|word| word.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no response: {text}"));
        let pairs = lines.filter_map(|line| line.split_once(": "));
        let headers = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { version, status, headers, body: body.to_owned() }
    }
}

/// One request by curl as `agent`; it must get an answer.
#[track_caller]
pub(crate) fn curl(world: &World, agent: &str, arguments: &[&str]) -> Reply {
    curl_with(world, agent, &[], arguments)
}

/// The same with these variables in its environment.
#[track_caller]
pub(crate) fn curl_with(
    world: &World,
    agent: &str,
    variables: &[(&str, &str)],
    arguments: &[&str],
) -> Reply {
    let always = ["curl", "-sS", "-i", "--suppress-connect-headers", "--max-time", "50"];
    let command: Vec<&str> = always.iter().chain(arguments).copied().collect();
    let ended = world.start_with(agent, variables, &command).wait();
    Reply::parse(ended.ok())
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

/// Path of a script of the tests.
pub(crate) fn fixture(name: &str) -> String {
    format!("{}/../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}
