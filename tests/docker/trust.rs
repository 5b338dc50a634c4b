//! Containers in which nothing is installed trust the CA: each client reaches a permitted upstream, with a credential
//! that it does not hold. The control is always the same client before its container was told.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use gateway::trust::{self, Anchors, Report};
use nix::unistd::Pid;

use crate::common::running::Ended;
use crate::engine::{Container, Engine};
use crate::governed::{self, Governed, SECRET, UPSTREAM};
use crate::images;

/// A client, and what it says when it does not trust the upstream.
struct Client {
    name: &'static str,
    command: Vec<String>,
    /// One of these.
    complaints: &'static [&'static str],
    says: &'static str,
}

const HELLO: &str = "hello from the origin";

fn url(test: &str, client: &str) -> String {
    format!("https://{UPSTREAM}/{test}/{client}")
}

fn client(
    test: &str,
    name: &'static str,
    command: &[&str],
    complaints: &'static [&'static str],
) -> Client {
    let mut command: Vec<String> = command.iter().copied().map(str::to_owned).collect();
    command.push(url(test, name));
    Client { name, command, complaints, says: HELLO }
}

/// What the machine has.
fn machine_clients(test: &str) -> Vec<Client> {
    let python = images::python();
    let ssl = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read())";
    let requests = "import sys, requests as r; print(r.get(sys.argv[1]).text)";
    let mut clients = vec![
        client(test, "curl", &["curl", "-sS", "-m", "20"], &["SSL certificate problem"]),
        client(
            test,
            "wget",
            &["wget", "-nv", "-T", "20", "-t", "1", "-O", "-"],
            &["is not trusted"],
        ),
        client(test, "python-ssl", &[&python, "-c", ssl], &["CERTIFICATE_VERIFY_FAILED"]),
        client(test, "python-requests", &[&python, "-c", requests], &["CERTIFICATE_VERIFY_FAILED"]),
        client(test, "go", &["/fixtures/get"], &["x509:"]),
        client(test, "node-openssl-ca", &["node", "--use-openssl-ca", "-e", NODE], &["UNABLE_TO_"]),
        client(test, "java", &["java", "-Xshare:auto", "/fixtures/Get.java"], &["PKIX path"]),
    ];
    let repository = format!("https://{UPSTREAM}/files/one.git");
    let git = ["git", "ls-remote", &repository].map(str::to_owned).to_vec();
    let complaints = &["certificate verification failed", "SSL certificate problem"];
    clients.push(Client { name: "git", command: git, complaints, says: "refs/heads/main" });
    clients
}

/// `fetch` is undici's.
const NODE: &str = "fetch(process.argv[1]).then(r => r.text()).then(console.log, \
                    e => { console.error(e.cause); process.exit(1) })";

/// A container with the machine's programs, and the tests' own in `/fixtures`.
fn machine(engine: &Arc<Engine>, more: &[&str]) -> Container {
    let fixtures = engine.world.path("fixtures");
    if !fixtures.exists() {
        fs::create_dir_all(&fixtures).unwrap();
    }
    for (from, to) in [(images::static_client(), "get"), (images::fixture("Get.java"), "Get.java")]
    {
        if !fixtures.join(to).exists() {
            let part = fixtures.join(format!("{to}-{:?}", std::thread::current().id()));
            fs::copy(from, &part).unwrap();
            fs::rename(part, fixtures.join(to)).unwrap();
        }
    }
    let mut options = images::machine_mounts();
    options.push(format!("--volume={}:/fixtures:ro", fixtures.display()));
    let options: Vec<&str> =
        options.iter().map(String::as_str).chain(more.iter().copied()).collect();
    engine.run(&options, images::MACHINE, &["sleep", "1000"])
}

fn governed(engine: &Engine) -> &Governed {
    engine.governed.get().unwrap()
}

#[track_caller]
fn install(engine: &Engine, container: &Container) -> Report {
    let anchors = Anchors::new(governed(engine).ca(engine)).unwrap();
    trust::install(container.pid(), &anchors).unwrap_or_else(|error| panic!("{error}"))
}

fn run(container: &Container, options: &[&str], client: &Client) -> Ended {
    let command: Vec<&str> = client.command.iter().map(String::as_str).collect();
    container.exec_with(options, &command)
}

#[track_caller]
fn distrusts(ended: &Ended, client: &Client) {
    let said = format!("{}{}", ended.stdout, ended.stderr);
    let complains = client.complaints.iter().any(|complaint| said.contains(complaint));
    assert!(ended.code != Some(0) && complains, "{}: {ended:#?}", client.name);
}

#[track_caller]
fn trusts(ended: &Ended, client: &Client) {
    let is_well = ended.code == Some(0) && ended.stdout.contains(client.says);
    assert!(is_well, "{}: {ended:#?}", client.name);
}

/// Everything that reached the upstream had the credential.
#[track_caller]
fn were_authorized(engine: &Engine, path: &str, at_least: usize) {
    let found = governed(engine).authorizations(path);
    assert!(found.len() >= at_least, "{path}: {found:?}");
    assert!(found.iter().all(|value| *value == format!("Bearer {SECRET}")), "{path}: {found:?}");
}

/// Device and inode of what a process sees there.
fn file_of(pid: Pid, path: &str) -> (u64, u64) {
    let metadata = fs::metadata(format!("/proc/{pid}/root{path}")).unwrap();
    (metadata.dev(), metadata.ino())
}

#[test]
fn real_clients_reach_a_permitted_upstream_with_a_credential() {
    let Some(engine) = governed::engine() else { return };
    let container = machine(&engine, &[]);
    governed(&engine).wait_for(&container);
    let clients = machine_clients("real");
    for client in &clients {
        distrusts(&run(&container, &[], client), client);
    }
    assert_eq!(governed(&engine).authorizations("/real/"), [""; 0]);
    let report = install(&engine, &container);
    let problems: Vec<_> = report.stores.iter().filter(|store| store.problem.is_some()).collect();
    assert!(problems.is_empty() && report.is_complete && report.is_changed, "{report:#?}");
    for client in &clients {
        trusts(&run(&container, &[], client), client);
    }
    were_authorized(&engine, "/real/", clients.len() - 1);
    were_authorized(&engine, "/files/one.git", 1);
}

#[test]
fn a_user_without_rights_in_a_read_only_container_trusts_the_ca() {
    let Some(engine) = governed::engine() else { return };
    let container = machine(&engine, &["--read-only", "--user=1000:1000", "--cap-drop=ALL"]);
    governed(&engine).wait_for(&container);
    let mut clients = machine_clients("user");
    // Java writes what it compiles into memory, but wants a home.
    clients.retain(|client| ["curl", "wget", "python-ssl", "go", "git"].contains(&client.name));
    for client in &clients {
        distrusts(&run(&container, &[], client), client);
    }
    install(&engine, &container);
    for client in &clients {
        trusts(&run(&container, &[], client), client);
    }
    were_authorized(&engine, "/user/", clients.len() - 1);
}

#[test]
fn images_without_any_bundle_get_one() {
    let Some(engine) = governed::engine() else { return };
    let container = engine.run(&[], images::BARE, &["sleep", "1000"]);
    governed(&engine).wait_for(&container);
    let client = client("bare", "go", &["get"], &["x509:"]);
    distrusts(&run(&container, &[], &client), &client);
    let report = install(&engine, &container);
    assert!(report.stores.iter().all(|store| store.problem.is_none()), "{report:#?}");
    trusts(&run(&container, &[], &client), &client);
    trusts(&run(&container, &["--user=1000"], &client), &client);
    were_authorized(&engine, "/bare/", 2);
    // The image has none of it: only an empty directory to mount on.
    let changed = engine.docker(&["diff", &container.name]);
    let files: Vec<&str> = changed.ok().lines().collect();
    assert_eq!(files, ["C /etc", "A /etc/ssl", "A /etc/ssl/certs"]);
}

#[test]
fn an_image_that_has_no_place_for_roots_and_is_read_only_is_reported() {
    let Some(engine) = governed::engine() else { return };
    let container = engine.run(&["--read-only"], images::BARE, &["sleep", "1000"]);
    governed(&engine).wait_for(&container);
    let report = install(&engine, &container);
    let problem = report.stores.iter().find_map(|store| store.problem.clone()).unwrap();
    assert!(problem.contains("read-only") && report.stores.len() == 1, "{report:#?}");
    let client = client("nowhere", "go", &["get"], &["x509:"]);
    distrusts(&run(&container, &[], &client), &client);
}

#[test]
fn a_distroless_image_trusts_the_ca() {
    let Some(engine) = governed::engine() else { return };
    let container = engine.run(&["--read-only"], images::DISTROLESS, &[]);
    governed(&engine).wait_for(&container);
    let client = client("distroless", "go", &["/get"], &["x509:"]);
    distrusts(&run(&container, &[], &client), &client);
    install(&engine, &container);
    trusts(&run(&container, &[], &client), &client);
    were_authorized(&engine, "/distroless/", 1);
}

#[test]
fn trust_is_installed_once_and_comes_back_after_a_restart() {
    let Some(engine) = governed::engine() else { return };
    let container = engine.run(&[], images::DISTROLESS, &[]);
    governed(&engine).wait_for(&container);
    assert!(install(&engine, &container).is_changed);
    let bundle = "/etc/ssl/certs/ca-certificates.crt";
    let first = file_of(container.pid(), bundle);
    assert!(!install(&engine, &container).is_changed);
    assert_eq!(file_of(container.pid(), bundle), first, "nothing was mounted anew");
    engine.restart(&container);
    assert_ne!(file_of(container.pid(), bundle), first, "the restart took it away");
    assert!(install(&engine, &container).is_changed);
    let client = client("restart", "go", &["/get"], &["x509:"]);
    governed(&engine).wait_for(&container);
    let reaches = || run(&container, &[], &client).code == Some(0);
    crate::common::wait_until("the container is governed again", reaches);
    were_authorized(&engine, "/restart/", 1);
}
