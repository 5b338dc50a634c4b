//! Real clients, with whatever they believe of proxies.

use std::path::Path;
use std::process::Command;

use http::Version;

use crate::client::{curl_with, fixture, python};
use crate::common::has_program;
use crate::common::world::World;

/// Nobody has this address: a client that really went there would get nothing.
const NO_PROXY_THERE: &str = "http://203.0.113.254:3128";
/// Nobody has this name.
const NO_SUCH_PROXY: &str = "http://proxy.corp.test:3128";

type Variables<'a> = &'a [(&'a str, &'a str)];

/// What people set, by what it is called in a failure.
const ENVIRONMENTS: [(&str, Variables<'static>); 5] = [
    ("no variable", &[]),
    (
        "a proxy that does not exist",
        &[
            ("http_proxy", NO_PROXY_THERE),
            ("https_proxy", NO_PROXY_THERE),
            ("HTTPS_PROXY", NO_PROXY_THERE),
            ("ALL_PROXY", NO_PROXY_THERE),
        ],
    ),
    (
        "the name of a proxy that does not exist",
        &[
            ("http_proxy", NO_SUCH_PROXY),
            ("https_proxy", NO_SUCH_PROXY),
            ("HTTPS_PROXY", NO_SUCH_PROXY),
        ],
    ),
    ("no proxy for anybody", &[("NO_PROXY", "*"), ("no_proxy", "*")]),
    (
        "a proxy, for nobody",
        &[
            ("http_proxy", NO_PROXY_THERE),
            ("https_proxy", NO_PROXY_THERE),
            ("NO_PROXY", "*"),
            ("no_proxy", "*"),
        ],
    ),
];

fn configure(world: &World) {
    let secret = world.secret("token", "s3cret");
    world.configure(&format!(
        r#"
[[agent]]
name = "worker"
[[credential]]
name = "token"
source = {{ file = "{secret}" }}
hosts = ["mail.test"]
inject = {{ header = "Authorization", format = "Bearer {{value}}" }}
agents = ["worker"]
allow_plaintext = true
[[rule]]
name = "read"
hosts = ["mail.test"]
methods = ["GET"]
action = "allow"
"#
    ));
}

#[test]
fn curl_is_governed_alike_whatever_its_proxy_variables_say() {
    let Some(world) = World::new() else { return };
    let (mail, chat) = (world.origin("mail.test"), world.origin("chat.test"));
    configure(&world);
    let mut asked = 0;
    for (what, variables) in ENVIRONMENTS {
        for url in ["https://mail.test/inbox?q=1", "http://mail.test/inbox?q=1"] {
            let reply = curl_with(&world, "worker", variables, &[url]);
            assert_eq!(
                (reply.status, reply.body.as_str()),
                (200, "hello from the origin\n"),
                "{what} {url}"
            );
            let reply = curl_with(&world, "worker", variables, &["-X", "DELETE", url]);
            assert_eq!(reply.error(), "blocked_by_default_policy", "{what} {url}");
            asked += 1;
        }
        let reply = curl_with(&world, "worker", variables, &["https://chat.test/"]);
        assert_eq!(reply.error(), "blocked_by_default_policy", "{what}");
        let records = world.new_requests(5);
        let hosts: Vec<_> = records.iter().map(|r| r["host"].as_str().unwrap()).collect();
        assert_eq!(
            hosts,
            ["mail.test", "mail.test", "mail.test", "mail.test", "chat.test"],
            "{what}"
        );
    }
    assert_eq!(mail.authorizations(), vec![Some("Bearer s3cret".to_owned()); asked]);
    assert!(mail.seen().iter().all(|seen| seen.target == "/inbox?q=1" && seen.host == "mail.test"));
    assert!(mail.seen().iter().all(|seen| !seen.headers.contains_key("proxy-connection")));
    assert_eq!(chat.connections(), 0);
    assert_eq!(world.arrived_at("203.0.113.254"), 0);
    assert_eq!(
        world.audit_of("connection").len(),
        0,
        "a tunnel with a request is no refused connection"
    );
}

#[test]
fn a_proxy_request_proves_its_destination_like_any_other() {
    let Some(world) = World::new() else { return };
    let (mail, chat) = (world.origin("mail.test"), world.origin("chat.test"));
    configure(&world);
    let proxy = ["--proxy", NO_PROXY_THERE];
    let with = |more: &[&'static str]| [&proxy, more].concat();
    let rows = [
        (with(&["-H", "Host: chat.test", "http://mail.test/"]), 400, "bad_request"),
        (with(&["-H", "Host: chat.test", "https://mail.test/"]), 421, "destination_mismatch"),
        (
            with(&["--connect-to", "mail.test:443:chat.test:443", "https://mail.test/"]),
            421,
            "destination_mismatch",
        ),
        (with(&["http://chat.test/"]), 403, "blocked_by_default_policy"),
    ];
    for (arguments, status, error) in &rows {
        let reply = curl_with(&world, "worker", &[], arguments);
        assert_eq!((reply.status, reply.error().as_str()), (*status, *error), "{arguments:?}");
    }
    assert_eq!(mail.connections() + chat.connections(), 0);
    assert_eq!(curl_with(&world, "worker", &[], &with(&["http://mail.test/"])).status, 200);
    world.new_requests(rows.len() + 1);
}

#[test]
fn clients_and_upstreams_speak_http1_and_http2_in_every_combination() {
    let Some(world) = World::new() else { return };
    let new = world.origin("mail.test");
    let old = world.origin_that(
        "old.test",
        crate::common::origin::Identity::Trusted,
        crate::common::origin::Manner::Http1,
    );
    world.configure("[[agent]]\nname = \"worker\"\ndefault = \"allow\"\n");
    for (option, version) in
        [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2"), ("--http1.0", "HTTP/1.")]
    {
        for url in ["https://mail.test/", "https://old.test/"] {
            let reply = curl_with(&world, "worker", &[], &[option, url]);
            assert_eq!(reply.status, 200, "{option} {url}");
            assert!(reply.version.starts_with(version), "{option} {url}: {}", reply.version);
        }
    }
    let prior = curl_with(&world, "worker", &[], &["--http2-prior-knowledge", "http://mail.test/"]);
    assert_eq!((prior.status, prior.version.as_str()), (200, "HTTP/2"));
    assert!(new.seen().iter().all(|seen| seen.version == Version::HTTP_2));
    assert!(old.seen().iter().all(|seen| seen.version == Version::HTTP_11));
    assert_eq!((new.seen().len(), old.seen().len()), (4, 3));
    assert_eq!(new.seen()[0].server_name.as_deref(), Some("mail.test"));
}

/// Every environment with a client that prints status and body of `https://mail.test/`.
#[track_caller]
fn assert_governed(command: &[&str]) {
    let Some(world) = World::new() else { return };
    let mail = world.origin("mail.test");
    world.origin("chat.test");
    configure(&world);
    for (what, variables) in ENVIRONMENTS {
        let ask = |url: &str| {
            let command: Vec<&str> = command.iter().copied().chain([url]).collect();
            let ended = world.start_with("worker", variables, &command).wait();
            ended.ok().to_owned()
        };
        assert_eq!(ask("https://mail.test/inbox"), "200 hello from the origin\n", "{what}");
        assert!(ask("https://chat.test/").contains("blocked_by_default_policy"), "{what}");
        assert_eq!(mail.seen().last().unwrap().headers["authorization"], "Bearer s3cret", "{what}");
    }
    world.new_requests(2 * ENVIRONMENTS.len());
}

#[test]
fn python_is_governed_alike_whatever_its_proxy_variables_say() {
    if has_program("python3") {
        assert_governed(&[python(), &fixture("client.py")]);
    }
}

#[test]
fn requests_for_python_is_governed_alike_whatever_its_proxy_variables_say() {
    if !has_program("python3") {
        return;
    }
    let import = Command::new(python()).args(["-c", "import requests"]).output().unwrap();
    if import.status.success() {
        assert_governed(&[python(), &fixture("client.py"), "requests"]);
    } else {
        eprintln!("SKIPPED: this test needs Python's requests");
    }
}

#[test]
fn node_is_governed_alike_whatever_its_proxy_variables_say() {
    if has_program("node") {
        assert_governed(&["node", &fixture("client.mjs")]);
    }
}

#[test]
fn git_clones_over_https_with_a_credential_that_it_does_not_have() {
    let Some(world) = World::new().filter(|_| has_program("git")) else { return };
    let code = world.origin("code.test");
    let bare = repository(&world.path(""));
    code.serve_files(bare.parent().unwrap().to_owned());
    let secret = world.secret("git-token", "dXNlcjpzM2NyZXQ=");
    world.configure(&format!(
        r#"
[[agent]]
name = "worker"
[[credential]]
name = "git"
source = {{ file = "{secret}" }}
hosts = ["code.test"]
inject = {{ header = "Authorization", format = "Basic {{value}}" }}
agents = ["worker"]
[[rule]]
name = "read"
hosts = ["code.test"]
methods = ["GET"]
action = "allow"
"#
    ));
    for (number, (what, variables)) in ENVIRONMENTS.into_iter().enumerate() {
        let target = format!("clone-{number}");
        let clone = ["git", "clone", "-q", "https://code.test/files/project.git", &target];
        let ended = world.start_with("worker", variables, &clone).wait();
        assert_eq!(ended.code, Some(0), "{what}: {ended:#?}");
        let text = std::fs::read_to_string(world.path(&target).join("README")).unwrap();
        assert_eq!(text, "cloned through the gateway", "{what}");
    }
    let expected = Some("Basic dXNlcjpzM2NyZXQ=".to_owned());
    assert!(code.authorizations().iter().all(|seen| *seen == expected));
    assert!(code.seen().len() > 10);
}

/// A bare repository for the protocol that needs no program on the server.
fn repository(folder: &Path) -> std::path::PathBuf {
    let (work, bare) = (folder.join("work"), folder.join("served/project.git"));
    std::fs::create_dir_all(&work).unwrap();
    std::fs::write(work.join("README"), "cloned through the gateway").unwrap();
    let git = |place: &Path, arguments: &[&str]| {
        let mut git = Command::new("git");
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        let identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"];
        let output = git.current_dir(place).args(identity).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    git(&work, &["init", "-q", "--initial-branch=main"]);
    git(&work, &["add", "README"]);
    git(&work, &["commit", "-q", "-m", "Say hello"]);
    git(folder, &["clone", "-q", "--bare", "work", bare.to_str().unwrap()]);
    git(&bare, &["update-server-info"]);
    bare
}
