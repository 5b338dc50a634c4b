//! What the agent does not have and the upstream sees.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::client::curl_with;
use crate::common::world::World;

const SECRET: &str = "s3cret-of-the-mail";
const ENV_SECRET: &str = "s3cret-of-the-chat";

/// `mail` from a file and `chat` from a variable, both for one agent.
fn configure(world: &World) {
    let secret = world.secret("mail-token", SECRET);
    world.configure(&format!(
        r#"
[[agent]]
name = "email-agent"
[[agent]]
name = "other-agent"
[[credential]]
name = "mail"
source = {{ file = "{secret}" }}
hosts = ["mail.test"]
inject = {{ header = "Authorization", format = "Bearer {{value}}" }}
agents = ["email-agent"]
[[credential]]
name = "chat"
source = {{ env = "CHAT_TOKEN" }}
hosts = ["chat.test"]
inject = {{ header = "X-Api-Key", format = "{{value}}" }}
agents = ["email-agent"]
[[rule]]
name = "everything"
hosts = ["mail.test", "chat.test", "third.test"]
action = "allow"
"#
    ));
}

const ENVIRONMENT: &[(&str, &str)] = &[("CHAT_TOKEN", ENV_SECRET)];

#[test]
fn the_upstream_sees_the_credential_whatever_the_agent_sends() {
    let Some(world) = World::new() else { return };
    let (mail, chat) = (world.origin("mail.test"), world.origin("chat.test"));
    configure(&world);
    let reply = curl_with(&world, "email-agent", ENVIRONMENT, &["https://mail.test/inbox"]);
    assert_eq!((reply.status, reply.body.as_str()), (200, "hello from the origin\n"));
    let own = ["-H", "Authorization: Bearer of-the-agent", "https://mail.test/inbox"];
    assert_eq!(curl_with(&world, "email-agent", ENVIRONMENT, &own).status, 200);
    let expected = Some(format!("Bearer {SECRET}"));
    assert_eq!(mail.authorizations(), [expected.clone(), expected]);

    let reply = curl_with(&world, "email-agent", ENVIRONMENT, &["https://chat.test/"]);
    assert_eq!(reply.status, 200);
    assert_eq!(chat.seen()[0].headers["x-api-key"], ENV_SECRET);
    let names: Vec<_> = world.new_requests(3).iter().map(|r| r["credential"].clone()).collect();
    assert_eq!(names, ["mail", "mail", "chat"]);
}

#[test]
fn a_credential_goes_nowhere_but_to_its_host_its_agent_and_verified_tls() {
    let Some(world) = World::new() else { return };
    let (mail, third) = (world.origin("mail.test"), world.origin("third.test"));
    configure(&world);
    for (agent, url) in [
        ("email-agent", "https://third.test/"),
        ("other-agent", "https://mail.test/"),
        ("email-agent", "http://mail.test/"),
    ] {
        assert_eq!(curl_with(&world, agent, ENVIRONMENT, &[url]).status, 200, "{agent} {url}");
    }
    assert_eq!(mail.authorizations(), [None, None]);
    assert_eq!(third.authorizations(), [None]);
    for record in world.new_requests(3) {
        assert!(record.get("credential").is_none(), "{record}");
    }
    // The control: the same agent at the right place.
    curl_with(&world, "email-agent", ENVIRONMENT, &["https://mail.test/"]);
    assert!(mail.authorizations()[2].is_some());
}

/// Looks wherever a process can look: its environment, those of all processes, and every file of the world.
const SEARCH: &str = r#"
env
for file in /proc/[0-9]*/environ; do tr '\0' '\n' <"$file"; done
for file in $(find "$1" -type f); do echo "== $file"; cat "$file"; done
find "$1" -name 'ca*key*'
"#;

#[test]
fn the_agent_finds_no_secret_in_environment_processes_and_files() {
    let Some(world) = World::new() else { return };
    world.origin("mail.test");
    configure(&world);
    // The state directory holds its files before the search.
    curl_with(&world, "email-agent", ENVIRONMENT, &["https://mail.test/"]);
    let folder = world.path("");
    let search = ["sh", "-c", SEARCH, "sh", folder.to_str().unwrap()];
    let secrets = [SECRET, ENV_SECRET, "PRIVATE KEY", "\"decision\""];

    let governed = world.start_with("email-agent", ENVIRONMENT, &search).wait();
    for secret in secrets {
        assert!(!governed.stdout.contains(secret), "{secret} is found:\n{}", governed.stdout);
    }
    // What is not secret is found, and without Tollgate everything is.
    assert!(governed.stdout.contains("BEGIN CERTIFICATE"), "{}", governed.stdout);
    let ungoverned = world.start_ungoverned(ENVIRONMENT, &search).wait();
    for secret in secrets {
        assert!(ungoverned.stdout.contains(secret), "the search does not find {secret}");
    }
}

#[test]
fn no_secret_is_in_the_audit_the_state_or_the_log() {
    let Some(world) = World::new() else { return };
    let (mail, _chat) = (world.origin("mail.test"), world.origin("chat.test"));
    configure(&world);
    let variables = [ENVIRONMENT, &[("TOLLGATE_LOG", "trace")]].concat();
    let urls = ["https://mail.test/a?token=query-of-the-agent", "https://chat.test/b"];
    let curl = ["curl", "-sS", "-o", "/dev/null", "--url", urls[0], "--next", "--url", urls[1]];
    let ended = world.start_with("email-agent", &variables, &curl).wait();
    assert_eq!(mail.authorizations(), [Some(format!("Bearer {SECRET}"))]);
    world.new_requests(2);
    let audit = fs::read_to_string(world.path("audit.jsonl")).unwrap();
    let mut state = Vec::new();
    read_all(&world.path("state"), &mut state);
    let state = String::from_utf8_lossy(&state);
    for secret in [SECRET, ENV_SECRET] {
        for (place, text) in [("log", &*ended.stderr), ("audit", &*audit), ("state", &*state)] {
            assert!(!text.contains(secret), "{secret} is in the {place}");
        }
    }
    assert!(!audit.contains("query-of-the-agent"), "a query is in the audit");
    // The control: there is something in each of them.
    assert!(ended.stderr.contains("TRACE"), "{}", ended.stderr);
    assert!(audit.contains("mail.test") && state.contains("PRIVATE KEY"));
}

#[test]
fn what_tollgate_keeps_is_open_to_its_owner_only() {
    let Some(world) = World::new() else { return };
    world.origin("mail.test");
    configure(&world);
    curl_with(&world, "email-agent", ENVIRONMENT, &["https://mail.test/"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&world.path("state")), 0o700);
    assert_eq!(mode(&world.path("audit.jsonl")), 0o600);
    let mut files = Vec::new();
    for entry in fs::read_dir(world.path("state")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            files.push(format!("{} {:o}", path.file_name().unwrap().display(), mode(&path)));
        }
    }
    assert!(files.len() >= 2, "{files:?}");
    files.retain(|file| file != "ca.pem 644");
    assert!(files.iter().all(|file| file.ends_with(" 600")), "{files:?}");
}

#[test]
fn credentials_of_two_agents_never_mix() {
    let Some(world) = World::new() else { return };
    let mail = world.origin("mail.test");
    let mut text = String::new();
    for agent in ["ann", "ben"] {
        let secret = world.secret(agent, &format!("secret-of-{agent}"));
        text += &format!(
            r#"
[[agent]]
name = "{agent}"
default = "allow"
[[credential]]
name = "{agent}-mail"
source = {{ file = "{secret}" }}
hosts = ["mail.test"]
inject = {{ header = "Authorization", format = "Bearer {{value}}" }}
agents = ["{agent}"]
"#
        );
    }
    world.configure(&text);
    // At the same time, each over several connections and over one that is used again.
    let script = r#"for i in 1 2 3; do
        curl -sS -o /dev/null -o /dev/null -H "x-agent: $1" https://mail.test/1 https://mail.test/2 &
    done; wait"#;
    let runs: Vec<_> = ["ann", "ben", "ann", "ben"]
        .map(|agent| world.start(agent, &["sh", "-c", script, "sh", agent]))
        .into_iter()
        .collect();
    for run in runs {
        run.wait().ok();
    }
    let seen = mail.seen();
    assert_eq!(seen.len(), 24);
    for seen in seen {
        let agent = seen.headers["x-agent"].to_str().unwrap();
        assert_eq!(seen.headers["authorization"], format!("Bearer secret-of-{agent}").as_str());
    }
    for record in world.new_requests(24) {
        let agent = record["agent"].as_str().unwrap();
        assert_eq!(record["credential"], format!("{agent}-mail"));
    }
}

#[test]
fn a_credential_that_cannot_be_read_starts_nothing() {
    let Some(world) = World::new() else { return };
    let mail = world.origin("mail.test");
    configure(&world);
    fs::remove_file(world.path("mail-token")).unwrap();
    let ended =
        world.start_with("email-agent", ENVIRONMENT, &["curl", "-s", "https://mail.test/"]).wait();
    assert_eq!(ended.code, Some(125), "{ended:#?}");
    assert!(ended.stderr.contains("mail-token") && ended.stderr.contains("mail"), "{ended:#?}");
    assert_eq!(mail.connections(), 0);
    // The control: with the file it starts.
    world.secret("mail-token", SECRET);
    let reply = curl_with(&world, "email-agent", ENVIRONMENT, &["https://mail.test/"]);
    assert_eq!((reply.status, mail.connections()), (200, 1));
}

fn read_all(folder: &Path, into: &mut Vec<u8>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, into);
        } else {
            into.extend(fs::read(path).unwrap());
        }
    }
}
