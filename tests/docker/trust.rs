//! Containers in which nothing is installed trust the CA: each client reaches a permitted upstream, with a credential
//! that it does not hold. The control is always the same client before its container was told.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use gateway::trust::{self, Anchors, Report};
use nix::unistd::Pid;

use crate::common::running::Ended;
use crate::engine::{Container, Engine};
use crate::governed::{self, Governed, SECRET, UPSTREAM, WHEEL};
use crate::images;

/// A client, and what it says when it does not trust the upstream.
pub(crate) struct Client {
    pub(crate) name: &'static str,
    pub(crate) command: Vec<String>,
    /// One of these.
    pub(crate) complaints: &'static [&'static str],
    pub(crate) says: &'static str,
}

pub(crate) const HELLO: &str = "hello from the origin";

pub(crate) fn url(test: &str, client: &str) -> String {
    format!("https://{UPSTREAM}/{test}/{client}")
}

pub(crate) fn client(
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
    let wheel = format!("https://{UPSTREAM}/files/{WHEEL}");
    let pip = [&python, "-m", "pip", "--retries", "0", "--no-cache-dir", "download", "-d", "/tmp"];
    let mut pip: Vec<String> = pip.iter().map(|word| (*word).to_owned()).collect();
    pip.extend(["--no-deps".to_owned(), "--no-index".to_owned(), wheel]);
    let complaints = &["CERTIFICATE_VERIFY_FAILED"];
    clients.push(Client { name: "pip", command: pip, complaints, says: "Successfully downloaded" });
    clients
}

/// `fetch` is undici's.
const NODE: &str = "fetch(process.argv[1]).then(r => r.text()).then(console.log, \
                    e => { console.error(e.cause); process.exit(1) })";

/// A container with the machine's programs, and the tests' own in `/fixtures`.
pub(crate) fn machine(engine: &Arc<Engine>, more: &[&str]) -> Container {
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

pub(crate) fn governed(engine: &Engine) -> &Governed {
    engine.governed.get().unwrap()
}

#[track_caller]
pub(crate) fn install(engine: &Engine, container: &Container) -> Report {
    let anchors = Anchors::new(governed(engine).ca(engine)).unwrap();
    trust::install(container.pid(), &anchors).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn run(container: &Container, options: &[&str], client: &Client) -> Ended {
    let command: Vec<&str> = client.command.iter().map(String::as_str).collect();
    container.exec_with(options, &command)
}

#[track_caller]
pub(crate) fn distrusts(ended: &Ended, client: &Client) {
    let said = format!("{}{}", ended.stdout, ended.stderr);
    let complains = client.complaints.iter().any(|complaint| said.contains(complaint));
    assert!(ended.code != Some(0) && complains, "{}: {ended:#?}", client.name);
}

#[track_caller]
pub(crate) fn trusts(ended: &Ended, client: &Client) {
    let is_well = ended.code == Some(0) && ended.stdout.contains(client.says);
    assert!(is_well, "{}: {ended:#?}", client.name);
}

/// Everything that reached the upstream had the credential.
#[track_caller]
pub(crate) fn were_authorized(engine: &Engine, path: &str, at_least: usize) {
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
    governed(&engine).without_trust(&container);
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
    were_authorized(&engine, "/real/", clients.len() - 2);
    were_authorized(&engine, "/files/", 2);
    // What cannot be had without its environment, and is said: Node with nothing but its own roots.
    let node = client("real", "node", &["node", "-e", NODE], &["UNABLE_TO_"]);
    distrusts(&run(&container, &[], &node), &node);
    let variable = "--env=NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt";
    trusts(&run(&container, &[variable], &node), &node);
    // Every root that the image had is still there.
    let count = |text: &str| text.matches("BEGIN CERTIFICATE").count();
    let before = fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").unwrap();
    let after = container.exec(&["cat", "/etc/ssl/certs/ca-certificates.crt"]);
    assert_eq!(count(after.ok()), count(&before) + 1);
}

#[test]
fn a_user_without_rights_in_a_read_only_container_trusts_the_ca() {
    let Some(engine) = governed::engine() else { return };
    let container = machine(&engine, &["--read-only", "--user=1000:1000", "--cap-drop=ALL"]);
    governed(&engine).without_trust(&container);
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
    governed(&engine).without_trust(&container);
    let client = client("bare", "go", &["get"], &["x509:"]);
    distrusts(&run(&container, &[], &client), &client);
    let report = install(&engine, &container);
    assert!(report.stores.iter().all(|store| store.problem.is_none()), "{report:#?}");
    trusts(&run(&container, &[], &client), &client);
    trusts(&run(&container, &["--user=1000"], &client), &client);
    were_authorized(&engine, "/bare/", 2);
    // Its root can neither change nor remove it.
    for command in
        ["umount /etc/ssl/certs", "mv /etc/ssl/certs /etc/other", "touch /etc/ssl/certs/x"]
    {
        let ended = container.exec(&["sh", "-c", &format!("busybox {command}")]);
        assert_ne!(ended.code, Some(0), "{command}: {ended:?}");
    }
    // The image has none of it: only an empty directory to mount on.
    let changed = engine.docker(&["diff", &container.name]);
    let files: Vec<&str> = changed.ok().lines().collect();
    assert_eq!(files, ["C /etc", "A /etc/ssl", "A /etc/ssl/certs"]);
}

#[test]
fn an_image_without_a_place_for_roots_trusts_the_ca_although_it_is_read_only() {
    let Some(engine) = governed::engine() else { return };
    let container = engine.run(&["--read-only"], images::BARE, &["sleep", "1000"]);
    governed(&engine).without_trust(&container);
    let client = client("sealed", "go", &["get"], &["x509:"]);
    distrusts(&run(&container, &[], &client), &client);
    install(&engine, &container);
    trusts(&run(&container, &[], &client), &client);
    trusts(&run(&container, &["--user=1000"], &client), &client);
    were_authorized(&engine, "/sealed/", 2);
    // It is as read-only as before.
    let ended = container.exec(&["sh", "-c", "busybox touch /etc/ssl/x || busybox touch /x"]);
    assert!(ended.code != Some(0) && ended.stderr.contains("Read-only"), "{ended:?}");
}

#[test]
fn a_place_that_cannot_be_made_is_reported() {
    let Some(engine) = governed::engine() else { return };
    let etc = engine.world.path("sealed-etc");
    fs::create_dir_all(&etc).unwrap();
    for name in ["hostname", "hosts", "resolv.conf"] {
        fs::write(etc.join(name), "").unwrap();
    }
    let volume = format!("--volume={}:/etc:ro", etc.display());
    let container = engine.run(&[&volume], images::BARE, &["sleep", "1000"]);
    governed(&engine).without_trust(&container);
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
    governed(&engine).without_trust(&container);
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
    governed(&engine).without_trust(&container);
    assert!(install(&engine, &container).is_changed);
    let bundle = "/etc/ssl/certs/ca-certificates.crt";
    let first = file_of(container.pid(), bundle);
    assert!(!install(&engine, &container).is_changed);
    assert_eq!(file_of(container.pid(), bundle), first, "nothing was mounted anew");
    engine.restart(&container);
    let client = client("restart", "go", &["/get"], &["x509:"]);
    governed(&engine).without_trust(&container);
    distrusts(&run(&container, &[], &client), &client);
    // Once more, and this time it stays.
    engine.restart(&container);
    governed(&engine).wait_until_told(&container);
    trusts(&run(&container, &[], &client), &client);
    were_authorized(&engine, "/restart/", 1);
}

#[test]
fn both_cas_are_trusted_while_one_replaces_the_other() {
    let Some(engine) = governed::engine() else { return };
    let container = engine.run(&[], images::DISTROLESS, &[]);
    governed(&engine).without_trust(&container);
    let current = governed(&engine).ca(&engine).to_owned();
    let folder = tempfile::tempdir().unwrap();
    drop(gateway::terminate::Authority::open(folder.path()).unwrap());
    let next = gateway::terminate::trusted_pem(folder.path()).unwrap();
    let both = format!("{current}{next}");
    let client = client("rotated", "go", &["/get"], &["x509:"]);
    let mounts = || {
        let text = fs::read_to_string(format!("/proc/{}/mountinfo", container.pid())).unwrap();
        text.lines().count()
    };
    let installed = |pem: &str| {
        let anchors = Anchors::new(pem).unwrap();
        trust::install(container.pid(), &anchors).unwrap_or_else(|error| panic!("{error}"))
    };
    assert!(installed(&current).is_changed);
    let count = mounts();
    assert!(installed(&both).is_changed);
    assert_eq!(mounts(), count, "what was mounted before is gone");
    trusts(&run(&container, &[], &client), &client);
    // The control: once only the successor is trusted, what the old one signed is not.
    assert!(installed(&next).is_changed);
    distrusts(&run(&container, &[], &client), &client);
    assert_eq!(mounts(), count);
}

#[test]
fn hostile_files_lead_nowhere_and_hold_nobody_up() {
    let Some(engine) = governed::engine() else { return };
    let container = engine.run(&[], images::BARE, &["sleep", "1000"]);
    governed(&engine).without_trust(&container);
    let own = gateway::terminate::Authority::open(&engine.world.path("hosts")).unwrap();
    let on_host = engine.world.path("hosts/ca.pem").display().to_string();
    let script = format!(
        r#"set -e; b() {{ busybox "$@"; }}; b mkdir -p /etc/ssl /etc/pki/tls /opt/deep /usr/lib/ssl
         b ln -s {on_host} /etc/ssl/cert.pem
         b mkfifo /etc/pki/tls/cert.pem
         b truncate -s 1000000000 /etc/ssl/ca-bundle.pem
         b ln -s /proc/1 /etc/pki/tls/certs
         b ln -s / /opt/deep/er; b ln -s /proc/self/root/../../.. /opt/deep/est
         b ln -s loop /usr/lib/ssl/loop; b ln -s loop /usr/lib/ssl/certs"#
    );
    container.exec(&["sh", "-c", &script]).ok();
    let pid = container.pid();
    // The control: who opens it from outside opens a file of the host.
    let opened = fs::read_to_string(format!("/proc/{pid}/root/etc/ssl/cert.pem")).unwrap();
    assert_eq!(opened, own.ca_pem());
    let report = install(&engine, &container);
    let problem = |path: &str| {
        let store = report.stores.iter().find(|store| store.path.to_str() == Some(path));
        store.and_then(|store| store.problem.clone()).unwrap_or_default()
    };
    assert!(problem("/etc/ssl/ca-bundle.pem").contains("too large"), "{report:#?}");
    assert!(
        report.stores.iter().any(|store| {
            store.problem.as_ref().is_some_and(|why| why.contains("not on a file system"))
        }),
        "{report:#?}"
    );
    // None of the places had a bundle: the client gets one, with the CA and nothing of the host's.
    let bundle = container.exec(&["cat", "/etc/ssl/certs/ca-certificates.crt"]);
    assert_eq!(bundle.ok(), governed(&engine).ca(&engine));
    let client = client("hostile", "go", &["get"], &["x509:"]);
    // Go would read everything below /proc/1 too, which the container's owner has to thank themselves for.
    trusts(&run(&container, &["--env=SSL_CERT_DIR=/etc/ssl/certs"], &client), &client);
    were_authorized(&engine, "/hostile/", 1);
}

#[test]
fn a_process_with_the_hosts_files_is_refused() {
    let Some(engine) = governed::engine() else { return };
    let process = engine.world.start_ungoverned(&[], &["sleep", "1000"]);
    let pid = process.pid();
    let pem = governed(&engine).origin.name.clone();
    assert!(Anchors::new(&pem).is_err(), "no certificate is no anchor");
    let container = engine.run(&[], images::BARE, &["sleep", "1000"]);
    governed(&engine).without_trust(&container);
    let anchors = Anchors::new(governed(&engine).ca(&engine)).unwrap();
    let refused = engine.world.host.run(move || trust::install(pid, &anchors));
    assert!(matches!(refused, Err(trust::InstallError::HostFiles { .. })), "{refused:?}");
}

#[test]
fn check_says_which_clients_trust_the_ca_and_why_others_do_not() {
    let Some(engine) = governed::engine() else { return };
    let container = machine(&engine, &[]);
    governed(&engine).without_trust(&container);
    let config = engine.world.path("tollgate.toml").display().to_string();
    let check = || {
        let program = env!("CARGO_BIN_EXE_tollgate");
        let words = ["trust", "check", &container.name, "--json", "--config", &config];
        let command: Vec<&str> = [program].into_iter().chain(words).collect();
        let ended = engine.start_command(&command).wait();
        let clients: Vec<serde_json::Value> = serde_json::from_str(ended.ok()).unwrap();
        let failing = clients.iter().filter(|client| !client["problem"].is_null());
        let name = |client: &serde_json::Value| client["name"].as_str().unwrap().to_owned();
        let failing: Vec<String> = failing.map(name).collect();
        (clients.iter().map(name).collect::<Vec<_>>(), failing)
    };
    let (all, failing) = check();
    for name in
        ["curl", "wget", "git", "python3", "node", "java", "pip", "requests, httpx (certifi)"]
    {
        assert!(all.iter().any(|other| other == name), "{name}: {all:?}");
    }
    assert_eq!(failing, all, "before, none does");
    install(&engine, &container);
    let (_all, failing) = check();
    assert!(failing.iter().any(|name| name == "node"), "{failing:?}");
    let has_own = ["node", "npm", "yarn", "pnpm", "bun", "deno", "uv", "chromium", "firefox"];
    assert!(failing.iter().all(|name| has_own.contains(&&**name)), "{failing:?}");
}
