//! `tollgate logs`.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::probe::{Probe, records};
use crate::tollgate::{Finished, Host, Running, TOLLGATE, finish, wait_for};

/// A folder with a configuration and an audit log in it.
struct Logged {
    folder: tempfile::TempDir,
}

const RECORDS: &str = r#"{"ts":"2026-01-31T11:00:00Z","kind":"request","id":"1","agent":"worker","workload":"run-1","decision":"allow","reason":"allowed_by_rule","rule":"read","scheme":"https","method":"GET","host":"mail.test","port":443,"path":"/"}
{"ts":"2026-01-31T12:00:00.123456Z","kind":"kernel","id":"2","agent":"worker","workload":"run-1","decision":"block","reason":"kernel_refused","vector":"udp","detail":"UDP to anywhere but DNS","process":{"pid":7,"comm":"nc"},"scheme":"udp","host":"203.0.113.9","port":443}
{"ts":"2026-01-31T12:30:00Z","kind":"connection","id":"3","agent":"other","workload":"run-2","decision":"block","reason":"no_flow_record"}
{"ts":"2026-01-31T12:31:00Z","kind":"kern
{"ts":"2026-01-31T13:00:00Z","kind":"kernel","id":"4","agent":"worker","workload":"run-1","decision":"block","reason":"kernel_refused","vector":"udp","count":99980}
{"ts":"2026-01-31T13:30:00Z","kind":"dns","id":"5","agent":"other","workload":"run-2","decision":"allow","reason":"dns_answered","method":"A","host":"mail.test"}
{"ts":"2026-01-31T13:31:00Z","kind":"ker"#;

const TORN: &str = "tollgate: lines of the audit log that are no whole records: 1\n";

impl Logged {
    fn new(text: &str) -> Self {
        let logged = Self { folder: tempfile::tempdir().unwrap() };
        fs::write(logged.path("t.toml"), "[gateway]\naudit = \"audit.jsonl\"\n").unwrap();
        fs::write(logged.path("audit.jsonl"), text).unwrap();
        logged
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(TOLLGATE);
        command.args(["logs", "--config", &self.path("t.toml")]).args(words);
        command
    }

    fn logs(&self, words: &[&str]) -> Finished {
        finish(&mut self.command(words))
    }

    /// The ids of the records that are printed.
    fn ids(&self, words: &[&str]) -> String {
        let said = self.logs(&[words, &["--json"]].concat()).success();
        let id = |line: &str| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            record["id"].as_str().unwrap().to_owned()
        };
        said.lines().map(id).collect()
    }
}

#[test]
fn the_records_that_are_asked_for_are_printed_as_they_stand() {
    let logged = Logged::new(RECORDS);
    assert_eq!(logged.ids(&[]), "12345");
    assert_eq!(logged.ids(&["--security"]), "234");
    assert_eq!(logged.ids(&["--agent", "worker"]), "124");
    assert_eq!(logged.ids(&["--security", "--agent", "worker"]), "24");
    assert_eq!(logged.ids(&["--since", "2026-01-31T13:30:00+01:00"]), "345");
    assert_eq!(logged.ids(&["--since", "1s"]), "");
    assert_eq!(logged.ids(&["--agent", "nobody"]), "");
    let whole = logged.logs(&["--json"]);
    assert_eq!(whole.stderr, TORN, "a torn line is said, one that is being written is not");
    let expected: String = RECORDS
        .lines()
        .filter(|line| line.ends_with('}'))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(whole.success(), expected);
}

#[test]
fn people_get_a_table() {
    let logged = Logged::new(RECORDS);
    let said = logged.logs(&["--security"]);
    assert_eq!(said.stderr, TORN);
    let expected = "\
TIME                     AGENT        WORKLOAD         PROCESS              WHAT                 DESTINATION                      REASON                   COUNT  DETAIL
2026-01-31T12:00:00.123Z worker       run-1            nc[7]                udp                  udp:203.0.113.9:443              kernel_refused           1      UDP to anywhere but DNS
2026-01-31T12:30:00Z     other        run-2            -                    connection           -                                no_flow_record           1
2026-01-31T13:00:00Z     worker       run-1            -                    udp                  -                                kernel_refused           99980
";
    assert_eq!(said.success(), expected);
}

#[test]
fn what_cannot_be_answered_is_said_with_its_own_exit_code() {
    let logged = Logged::new("");
    assert_eq!(logged.logs(&[]).success(), "");
    for words in [&["--since", "yesterday"][..], &["--agent", "Not A Name"], &["--nonsense"]] {
        let finished = logged.logs(words);
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(2), ""));
        assert!(!finished.stderr.is_empty());
    }
    fs::remove_file(logged.path("audit.jsonl")).unwrap();
    for words in [&[][..], &["--follow"]] {
        let finished = logged.logs(words);
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(1), ""));
        let expected = format!(
            "tollgate: there is no audit log at {} (gateway.audit): nothing was governed by this configuration yet\n",
            logged.path("audit.jsonl")
        );
        assert_eq!(finished.stderr, expected);
    }
    fs::remove_file(logged.path("t.toml")).unwrap();
    assert_eq!(logged.logs(&[]).status.code(), Some(1));
}

#[test]
fn a_log_is_followed_through_torn_lines_and_rotation_until_its_reader_goes() {
    let logged = Logged::new(RECORDS);
    let append = |text: &str| {
        let mut options = fs::File::options();
        let mut file = options.append(true).create(true).open(logged.path("audit.jsonl")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let out = fs::File::create(logged.path("out")).unwrap();
    let mut follow = logged.command(&["--follow", "--security", "--json"]);
    let mut child = follow.stdin(Stdio::null()).stdout(out).stderr(Stdio::null()).spawn().unwrap();
    let printed = |count: usize| {
        wait_for("the records", || {
            let said = fs::read_to_string(logged.path("out")).unwrap();
            (said.lines().count() == count).then_some(said)
        })
    };
    printed(3);
    // The end of the line that was being written.
    append("nel\",\"id\":\"6\",\"agent\":\"worker\",\"reason\":\"kernel_refused\"}\n");
    printed(4);
    fs::rename(logged.path("audit.jsonl"), logged.path("audit.jsonl.1")).unwrap();
    append("{\"ts\":\"\",\"kind\":\"kernel\",\"id\":\"7\",\"reason\":\"kernel_refused\"}\n");
    let said = printed(5);
    let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(last["id"], "7");
    child.kill().unwrap();
    child.wait().unwrap();

    // With a reader who has seen enough after one line.
    let script =
        format!("{TOLLGATE} logs --config {} --follow --json | head -n 1", logged.path("t.toml"));
    let finished = Running::start(Command::new("sh").args(["-c", &script])).finish();
    assert_eq!(finished.success().lines().count(), 1);
}

#[test]
fn an_agent_that_calls_itself_names_cannot_reach_the_terminal() {
    let Some(host) = Host::new("") else { return };
    let names = [
        r"\x1b[2J\x1b]0;x\x07",
        r"a\nb\r\tc",
        r"\x9b1m\xc2\x9b",
        r"\xe2\x80\xae",
        r"x  udp  1",
        r#"\"\\\""#,
    ];
    let code: String = names
        .iter()
        .map(|name| format!("named(b'''{name}'''); tried(lambda: socket.socket(2, 3, 1))\n"))
        .collect();
    let probe = Probe::governed(&host, &code);
    probe.go();
    let found = probe.records("socket_family", names.len());
    probe.finish();
    assert_eq!(found[0]["process"]["comm"], "\u{1b}[2J\u{1b}]0;x\u{7}", "the audit has it all");
    assert_eq!(found[1]["process"]["comm"], "a\nb\r\tc");
    let config = host.config();
    let logs = ["logs", "--security", "--config", config.to_str().unwrap()];
    for extra in [&[][..], &["--json"]] {
        let said = finish(Command::new(TOLLGATE).args(logs).args(extra)).success();
        let header = usize::from(extra.is_empty());
        assert_eq!(said.lines().count(), header + records(&host, "socket_family").len(), "{said}");
        let plain = |c: char| c.is_ascii_graphic() || c == ' ' || c == '\n' || c == '\u{fffd}';
        assert!(said.chars().all(plain), "{said:?}");
    }
}
