//! Further clients, each in a container in which nothing is installed or changed: what the machine has of other
//! languages and TLS libraries, and those whose roots are compiled in.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::ServerName;
use serde_json::Value;

use crate::engine::{Container, Engine};
use crate::governed::{self, UPSTREAM};
use crate::images;
use crate::trust::{
    Client, client, distrusts, governed, install, machine, run, trusts, url, were_authorized,
};

/// Debian's, whose packages the machine has; the machine's own may be another.
const PYTHON: &str = "/usr/bin/python3";
/// One with packages of its own.
const VENV_PYTHON: &str = "/opt/venvs/venv/bin/python";

/// The same, with a damaged root in it, for which OpenSSL refuses them all.
const DAMAGED_PYTHON: &str = "/opt/venvs/damaged/bin/python";

const REQUESTS: &str = "import sys, requests as r; print(r.get(sys.argv[1]).text)";
const HTTPX: &str = "import sys, httpx as h; print(h.get(sys.argv[1]).text)";
const AIOHTTP: &str = "import sys, asyncio, aiohttp
async def main():
    async with aiohttp.ClientSession() as s:
        async with s.get(sys.argv[1]) as r: print(await r.text())
asyncio.run(main())";
/// Fails where it is libcurl with another TLS library.
const PYCURL: &str = "import sys, pycurl as p
assert 'GnuTLS' in p.version, p.version
c = p.Curl(); c.setopt(p.URL, sys.argv[1]); c.setopt(p.WRITEFUNCTION, sys.stdout.buffer.write); c.perform()";
const RUBY: &str = "puts Net::HTTP.get(URI(ARGV[0]))";
const PHP: &str = "$b = file_get_contents($argv[1]); if ($b === false) exit(1); echo $b;";

const DISTRUST: &[&str] = &["CERTIFICATE_VERIFY_FAILED", "certificate verify failed"];

/// Clients that read what the system or their packages have.
fn clients(test: &str) -> Vec<Client> {
    let path = url(test, "gnutls-cli").split_once(UPSTREAM).unwrap().1.to_owned();
    let ask = format!(
        "printf 'GET {path} HTTP/1.1\\r\\nHost: {UPSTREAM}\\r\\nConnection: close\\r\\n\\r\\n' | gnutls-cli {UPSTREAM}"
    );
    let mut gnutls = client(test, "gnutls-cli", &["sh", "-c", &ask], &["is NOT trusted"]);
    gnutls.command.truncate(3);
    let curl_gnutls = &["server certificate verification failed", "SSL certificate problem"];
    vec![
        gnutls,
        client(test, "libcurl-gnutls", &[PYTHON, "-c", PYCURL], curl_gnutls),
        client(test, "requests", &[PYTHON, "-c", REQUESTS], DISTRUST),
        client(test, "httpx", &[PYTHON, "-c", HTTPX], DISTRUST),
        client(test, "aiohttp", &[PYTHON, "-c", AIOHTTP], DISTRUST),
        client(test, "requests-venv", &[VENV_PYTHON, "-c", REQUESTS], DISTRUST),
        client(test, "httpx-venv", &[VENV_PYTHON, "-c", HTTPX], DISTRUST),
        client(test, "requests-damaged", &[DAMAGED_PYTHON, "-c", REQUESTS], &["PEM lib"]),
        client(test, "ruby", &["ruby", "-rnet/http", "-e", RUBY], DISTRUST),
        client(test, "php", &["php", "-r", PHP, "--"], DISTRUST),
        rust_client(test),
    ]
}

/// This very program.
fn rust_client(test: &str) -> Client {
    let run = ["/client", "--exact", "clients::with_native_roots", "--ignored", "--nocapture"];
    let mut rust = client(test, "rust", &["env"], &["UnknownIssuer"]);
    let variable = format!("{URL}={}", rust.command.pop().unwrap());
    rust.command.push(variable);
    rust.command.extend(run.map(str::to_owned));
    rust
}

const URL: &str = "TOLLGATE_TEST_URL";

#[test]
#[ignore = "a client, which containers run"]
#[expect(clippy::disallowed_methods, reason = "it stands for a program of a workload")]
fn with_native_roots() {
    let url = std::env::var(URL).unwrap();
    let path = url.split_once(UPSTREAM).unwrap().1;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(UPSTREAM).unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect((UPSTREAM, 443)).unwrap());
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {UPSTREAM}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    println!("{answer}");
}

/// Folder with two virtual environments that have a `certifi` of their own. In one of them a root is damaged.
fn make_venvs(engine: &Engine) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = engine.world.path("venvs");
    if folder.exists() {
        return folder;
    }
    let ask = "import sys; print('python%d.%d' % sys.version_info[:2])";
    let version = engine.world.start_ungoverned(&[], &[PYTHON, "-c", ask]).wait();
    let other = tempfile::tempdir().unwrap();
    let root = gateway::terminate::Authority::open(other.path()).unwrap().trusted_pem();
    for (name, damage) in [("venv", ""), ("damaged", DAMAGED)] {
        let venv = folder.join(name);
        let certifi = venv.join("lib").join(version.ok().trim()).join("site-packages/certifi");
        fs::create_dir_all(&certifi).unwrap();
        fs::create_dir_all(venv.join("bin")).unwrap();
        symlink(PYTHON, venv.join("bin/python")).unwrap();
        let settings = "home = /usr/bin\ninclude-system-site-packages = true\n";
        fs::write(venv.join("pyvenv.cfg"), settings).unwrap();
        fs::write(certifi.join("__init__.py"), CERTIFI).unwrap();
        fs::write(certifi.join("cacert.pem"), format!("{damage}{root}")).unwrap();
    }
    folder
}

const CERTIFI: &str = "import os
def where(): return os.path.join(os.path.dirname(__file__), 'cacert.pem')
def contents(): return open(where()).read()
";
const DAMAGED: &str = "-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----\n";

/// A container of the machine's programs with the virtual environments and the Rust client.
fn container(engine: &Arc<Engine>, more: &[&str]) -> Container {
    let venvs = format!("--volume={}:/opt/venvs:ro", make_venvs(engine).display());
    let own = std::env::current_exe().unwrap();
    let own = format!("--volume={}:/client:ro", own.display());
    let options: Vec<&str> = [&*venvs, &*own].into_iter().chain(more.iter().copied()).collect();
    machine(engine, &options)
}

#[test]
fn clients_of_other_languages_and_libraries_reach_a_permitted_upstream_with_a_credential() {
    let Some(engine) = governed::engine() else { return };
    let container = container(&engine, &[]);
    governed(&engine).without_trust(&container);
    let before = clients("others");
    for client in &before {
        distrusts(&run(&container, &[], client), client);
    }
    assert!(governed(&engine).authorizations("/others").is_empty());
    let report = install(&engine, &container);
    assert!(report.is_complete, "{report:#?}");
    let (root, user) = (clients("others"), clients("others-user"));
    for client in &root {
        trusts(&run(&container, &[], client), client);
    }
    for client in &user {
        let options = ["--user=1000:1000", "--env=HOME=/home/agent"];
        trusts(&run(&container, &options, client), client);
    }
    were_authorized(&engine, "/others/", root.len());
    were_authorized(&engine, "/others-user/", user.len());
    // What was there is there still, but for what was damaged.
    let ask = "import certifi; print(certifi.contents())";
    let roots = container.exec(&[DAMAGED_PYTHON, "-c", ask]);
    assert_eq!(roots.ok().matches("BEGIN CERTIFICATE").count(), 2, "{roots:?}");
    assert!(
        !roots.stdout.contains(DAMAGED) && roots.stdout.contains(governed(&engine).ca(&engine))
    );
}

const FETCH: &str = "fetch(process.argv[1]).then(r => r.text()).then(console.log, fail)";
const UNDICI: &str =
    "require('undici').request(process.argv[1]).then(r => r.body.text()).then(console.log, fail)";
const AXIOS: &str = "require('axios').get(process.argv[1]).then(r => console.log(r.data), fail)";
const FAIL: &str = "const fail = e => { console.error(e.cause ?? e.code ?? e); process.exit(1) };";
const PACKAGES: &str = "--env=NODE_PATH=/usr/share/nodejs";

/// Clients whose roots are Node.js's.
fn node_clients(test: &str) -> Vec<Client> {
    let complaints = &["UNABLE_TO_", "SELF_SIGNED_CERT"];
    let mut clients: Vec<Client> = [("fetch", FETCH), ("undici", UNDICI), ("axios", AXIOS)]
        .map(|(name, code)| {
            let code = format!("{FAIL} {code}");
            client(test, name, &["node", "-e", &code], complaints)
        })
        .into();
    let registry = format!("--registry=https://{UPSTREAM}/files/npm/{test}/");
    // As it is installed, whatever the machine's own configuration adds.
    let options = ["--fetch-retries=0", "--globalconfig=/nowhere", &registry];
    let npm = ["npm", "view"].into_iter().chain(options).chain(["one", "name"]);
    let command = npm.map(str::to_owned).collect();
    clients.push(Client { name: "npm", command, complaints, says: "one" });
    clients
}

/// The package that npm asks for.
fn make_package(engine: &Engine, test: &str) {
    let folder = engine.world.path("files").join("npm").join(test);
    fs::create_dir_all(&folder).unwrap();
    let tarball = format!("https://{UPSTREAM}/files/npm/{test}/one.tgz");
    let version = serde_json::json!({
        "name": "one", "version": "1.0.0", "dist": { "tarball": tarball, "shasum": "0" },
    });
    let package = serde_json::json!({
        "name": "one", "dist-tags": { "latest": "1.0.0" }, "versions": { "1.0.0": version },
    });
    fs::write(folder.join("one"), package.to_string()).unwrap();
}

/// What `tollgate trust check` says of one client in it.
fn problem(engine: &Engine, container: &Container, name: &str) -> Option<String> {
    let config = engine.world.path("tollgate.toml").display().to_string();
    let program = env!("CARGO_BIN_EXE_tollgate");
    let words = [program, "trust", "check", &container.name, "--json", "--config", &config];
    let ended = engine.start_command(&words).wait();
    let clients: Vec<Value> = serde_json::from_str(ended.ok()).unwrap();
    let found = clients.iter().find(|client| client["name"] == name);
    found.expect("it is installed")["problem"].as_str().map(str::to_owned)
}

#[test]
fn node_fails_with_its_own_roots_and_trusts_the_ca_in_a_container_that_was_handed_it() {
    let Some(engine) = governed::engine() else { return };
    make_package(&engine, "node");
    make_package(&engine, "handed");
    // By label alone: nothing that is mounted reaches roots that are compiled in.
    let plain = container(&engine, &[]);
    governed(&engine).without_trust(&plain);
    let ask =
        "console.log(process.config.target_defaults.defines.includes('NODE_OPENSSL_CERT_STORE'))";
    let reads_system = plain.exec(&["node", "-e", ask]).ok() == "true\n";
    for client in &node_clients("node") {
        distrusts(&run(&plain, &[PACKAGES], client), client);
    }
    install(&engine, &plain);
    for client in &node_clients("node") {
        let ended = run(&plain, &[PACKAGES], client);
        if reads_system { trusts(&ended, client) } else { distrusts(&ended, client) }
    }
    for name in ["node", "npm"] {
        let said = problem(&engine, &plain, name);
        let names = said.as_ref().is_some_and(|said| said.contains("NODE_EXTRA_CA_CERTS"));
        assert!(if reads_system { said.is_none() } else { names }, "{said:?}");
    }
    // With mount and variables from its creation on, and these alone.
    let handed = container(&engine, &borrowed(&handed_out(&engine.world.path("state"))));
    governed(&engine).without_trust(&handed);
    let clients = node_clients("handed");
    for client in &clients {
        trusts(&run(&handed, &[PACKAGES], client), client);
        trusts(&run(&handed, &[PACKAGES, "--user=1000", "--env=HOME=/tmp/user"], client), client);
    }
    were_authorized(&engine, "/handed/", 2 * (clients.len() - 1));
    were_authorized(&engine, "/files/npm/handed/", 2);
    assert_eq!(problem(&engine, &handed, "node"), None);
}

#[test]
fn what_a_container_is_handed_makes_clients_trust_the_ca_before_anything_is_mounted_over_stores() {
    let Some(engine) = governed::engine() else { return };
    let handed = container(&engine, &borrowed(&handed_out(&engine.world.path("state"))));
    governed(&engine).without_trust(&handed);
    let mut all = clients("first");
    // GnuTLS reads no variable.
    all.retain(|client| !client.name.contains("gnutls"));
    all.push(client("first", "curl", &["curl", "-sS", "-m", "20"], &[]));
    for client in &all {
        trusts(&run(&handed, &[], client), client);
    }
    were_authorized(&engine, "/first/", all.len());
}

/// Options of `docker run`.
fn handed_out(state_dir: &Path) -> Vec<String> {
    let handout = gateway::trust::handout(state_dir);
    let (source, target) = (handout.source.display(), handout.target.display());
    let mut options = vec![format!("--volume={source}:{target}:ro")];
    let variables = handout.variables.iter();
    options.extend(variables.map(|(name, value)| format!("--env={name}={}", value.display())));
    options
}

fn borrowed(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

#[test]
fn a_node_that_was_built_to_read_the_systems_roots_is_told_from_others() {
    let Some(engine) = governed::engine() else { return };
    let said = |name: &str, built_with: &str| {
        let usr = engine.world.path(name);
        let (programs, libraries) = (usr.join("bin"), usr.join("lib/x86_64-linux-gnu"));
        fs::create_dir_all(&programs).unwrap();
        fs::create_dir_all(&libraries).unwrap();
        fs::write(programs.join("node"), "").unwrap();
        fs::set_permissions(programs.join("node"), fs::Permissions::from_mode(0o755)).unwrap();
        let settings = format!("{}{{\"defines\": [{built_with}]}}", "\0".repeat(3 << 20));
        fs::write(libraries.join("libnode.so.108"), settings).unwrap();
        let volume = format!("--volume={}:/usr:ro", usr.display());
        let options = [volume.as_str(), "--env=PATH=/bin:/usr/bin"];
        let container = engine.run(&options, images::BARE, &["sleep", "1000"]);
        governed(&engine).wait_for(&container);
        governed(&engine).wait_until_told(&container);
        problem(&engine, &container, "node")
    };
    assert_eq!(said("debians-node", "\"NODE_OPENSSL_CERT_STORE\", \"X\""), None);
    assert!(said("official-node", "\"X\"").is_some_and(|said| said.contains("compiled in")));
}

/// Tries one address, as clients do that know of no other.
const FIRST_ADDRESS: &str = "import socket
family, kind, _, _, address = socket.getaddrinfo('api.test', 443, type=socket.SOCK_STREAM)[0]
socket.socket(family, kind).connect(address)
print(open('/proc/sys/net/ipv6/conf/lo/disable_ipv6').read())";

#[test]
fn a_client_that_tries_one_address_gets_one_that_its_container_can_connect_to() {
    let Some(engine) = governed::engine() else { return };
    // As engines make them, and with the family that they leave out.
    for (option, is_off) in [("disable_ipv6=1", "1"), ("disable_ipv6=0", "0")] {
        let option = format!("--sysctl=net.ipv6.conf.all.{option}");
        let container = machine(&engine, &[&option]);
        governed(&engine).wait_for(&container);
        let ended = container.exec(&[PYTHON, "-c", FIRST_ADDRESS]);
        assert_eq!(ended.ok().trim(), is_off);
    }
}
