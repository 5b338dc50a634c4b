use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::sniff::{Sniffed, sniff};

struct World {
    directory: TempDir,
    terminator: Terminator,
    ca: CertificateDer<'static>,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let authority = Authority::open(directory.path()).expect("authority");
        let ca = CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).expect("PEM");
        Self {
            directory,
            terminator: Terminator::new(Arc::new(ArcSwap::from_pointee(authority))),
            ca,
        }
    }

    /// A client that trusts the CA and nothing else.
    fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).expect("root");
        client(roots)
    }

    async fn connect(
        &self,
        client: ClientConfig,
        name: &str,
    ) -> (Result<Terminated<DuplexStream>, TerminateError>, io::Result<ClientStream<DuplexStream>>)
    {
        connect(&self.terminator, client, name, &host("fallback.example")).await
    }
}

fn client(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn host(text: &str) -> Host {
    Host::parse(text).expect("host")
}

async fn connect(
    terminator: &Terminator,
    client: ClientConfig,
    name: &str,
    fallback: &Host,
) -> (Result<Terminated<DuplexStream>, TerminateError>, io::Result<ClientStream<DuplexStream>>) {
    let (agent, gateway) = duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).expect("server name");
    let serving = async {
        let Ok(Sniffed::Tls(hello)) = sniff(gateway).await else { panic!("no hello") };
        terminator.terminate(hello, fallback).await
    };
    tokio::join!(serving, TlsConnector::from(Arc::new(client)).connect(name, agent))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("metadata").permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
}

// === the authority ===

#[test]
fn the_first_use_makes_a_ca_that_only_its_owner_can_use() {
    let directory = tempfile::tempdir().expect("directory");
    let state = directory.path().join("deep/state");
    let authority = Authority::open(&state).expect("authority");
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("ca.key")), 0o600);
    assert_eq!(mode(&state.join("ca.pem")), 0o644);
    let names: Vec<_> =
        fs::read_dir(&state).expect("list").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");

    let der = CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).expect("PEM");
    let (_rest, ca) = X509Certificate::from_der(&der).expect("certificate");
    let subject = ca.subject().to_string();
    assert!(subject.starts_with("CN=Tollgate CA ") && subject.len() == 23, "{subject}");
    assert_eq!(ca.subject(), ca.issuer());
    let constraints = ca.basic_constraints().expect("unique").expect("there");
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = ca.key_usage().expect("unique").expect("there");
    assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
    assert!(subject_key_id(&ca).is_some());
    let days =
        (ca.validity().not_after.timestamp() - ca.validity().not_before.timestamp()) / 86_400;
    assert_eq!(days, 3651);
    assert!(ca.public_key().parsed().is_ok_and(|key| key.key_size() == 256));
}

#[test]
fn the_next_use_finds_the_same_ca() {
    let directory = tempfile::tempdir().expect("directory");
    let first = Authority::open(directory.path()).expect("authority");
    let key = fs::read(directory.path().join("ca.key")).expect("key");
    let second = Authority::open(directory.path()).expect("authority");
    assert_eq!(first.ca_pem(), second.ca_pem());
    assert_eq!(fs::read(directory.path().join("ca.key")).expect("key"), key);
}

#[test]
fn many_that_start_at_once_end_with_one_ca() {
    for _round in 0..8 {
        let directory = tempfile::tempdir().expect("directory");
        let state = directory.path().join("state");
        let pems: Vec<String> = std::thread::scope(|scope| {
            let open = || Authority::open(&state).expect("authority").ca_pem().to_owned();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().expect("thread")).collect()
        });
        assert!(pems.iter().all(|pem| pem == &pems[0]));
    }
}

#[test]
fn processes_that_start_at_once_end_with_one_ca() {
    let directory = tempfile::tempdir().expect("directory");
    fs::write(directory.path().join(CHILD_MARK), "").expect("write");
    let children: Vec<_> = (0..6)
        .map(|_| {
            Command::new(std::env::current_exe().expect("executable"))
                .args(["--ignored", "--exact", "--nocapture"])
                .arg("terminate::tests::child_that_opens_the_ca_of_its_working_directory")
                .current_dir(directory.path())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("child")
        })
        .collect();
    let ends: Vec<_> =
        children.into_iter().map(|child| child.wait_with_output().expect("output")).collect();
    let pem = fs::read_to_string(directory.path().join("ca.pem")).expect("certificate");
    for end in ends {
        let text = String::from_utf8(end.stdout).expect("text");
        assert!(end.status.success() && text.contains(&pem), "{text}");
    }
}

#[test]
#[ignore = "only as a child of `processes_that_start_at_once_end_with_one_ca`"]
fn child_that_opens_the_ca_of_its_working_directory() {
    if Path::new(CHILD_MARK).exists() {
        println!("{}", Authority::open(Path::new(".")).expect("authority").ca_pem());
    }
}

const CHILD_MARK: &str = "started-by-the-test";

#[test]
fn an_interrupted_start_is_finished_with_the_key_that_is_there() {
    let world = World::new();
    let state = world.directory.path();
    let key = fs::read(state.join("ca.key")).expect("key");
    fs::remove_file(state.join("ca.pem")).expect("remove");
    fs::write(state.join("ca.pem.new"), "half a certi").expect("write");
    Authority::open(state).expect("authority");
    assert_eq!(fs::read(state.join("ca.key")).expect("key"), key);
    assert!(!state.join("ca.pem.new").exists());
    assert!(Authority::open(state).is_ok());
}

#[test]
fn what_does_not_fit_together_is_refused_with_the_file_and_the_remedy() {
    type Damage = fn(&Path);
    let rows: [(&str, Damage, &str); 10] = [
        ("open key", |state| set_mode(&state.join("ca.key"), 0o640), "chmod 0600"),
        ("replaceable certificate", |state| set_mode(&state.join("ca.pem"), 0o666), "chmod 0644"),
        ("replaceable directory", |state| set_mode(state, 0o777), "chmod 0700"),
        (
            "no key",
            |state| fs::remove_file(state.join("ca.key")).expect("remove"),
            "restore the key",
        ),
        (
            "empty key",
            |state| fs::write(state.join("ca.key"), "").expect("write"),
            "remove it and ca.pem to make a new CA",
        ),
        (
            "foreign certificate",
            |state| {
                let other = World::new();
                let pem = other.directory.path().join("ca.pem");
                fs::copy(pem, state.join("ca.pem")).expect("copy");
            },
            "does not belong to the key",
        ),
        ("no PEM", |state| fs::write(state.join("ca.pem"), "x").expect("write"), "is not PEM"),
        (
            "huge certificate",
            |state| fs::write(state.join("ca.pem"), vec![b'x'; 70_000]).expect("write"),
            "longer than 65536 bytes",
        ),
        (
            "a directory",
            |state| {
                fs::remove_file(state.join("ca.key")).expect("remove");
                fs::create_dir(state.join("ca.key")).expect("create");
                set_mode(&state.join("ca.key"), 0o700);
            },
            "not a regular file",
        ),
        (
            "a leaf",
            |state| {
                let key = fs::read_to_string(state.join("ca.key")).expect("key");
                let key = rcgen::KeyPair::from_pem(&key).expect("key");
                let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]);
                let leaf = params.expect("params").self_signed(&key).expect("certificate");
                fs::write(state.join("ca.pem"), leaf.pem()).expect("write");
            },
            "is not that of a CA",
        ),
    ];
    for (what, damage, remedy) in rows {
        let world = World::new();
        damage(world.directory.path());
        let error = Authority::open(world.directory.path()).expect_err(what);
        let text = error.to_string();
        assert!(text.contains(remedy), "{what}: {text}");
        assert!(text.contains(world.directory.path().to_str().expect("text")), "{what}: {text}");
        set_mode(world.directory.path(), 0o700);
    }
}

#[test]
fn an_expired_ca_is_refused() {
    let world = World::new();
    let state = world.directory.path();
    let key = fs::read_to_string(state.join("ca.key")).expect("key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = rcgen::KeyPair::from_pem(&key).expect("key");
    let expired = params.self_signed(&key).expect("certificate");
    fs::write(state.join("ca.pem"), expired.pem()).expect("write");
    assert!(Authority::open(state).expect_err("expired").to_string().contains("has expired"));
}

#[test]
fn no_key_material_is_in_the_debug_form() {
    let world = World::new();
    let key = fs::read_to_string(world.directory.path().join("ca.key")).expect("key");
    let text = format!("{:?}", world.terminator);
    assert!(
        key.lines().filter(|line| !line.starts_with('-')).all(|line| !text.contains(line)),
        "{text}"
    );
}

// === the certificates of hosts ===

fn subject_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn authority_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => {
            id.key_identifier.as_ref().map(|id| id.0.to_vec())
        }
        _ => None,
    })
}

async fn leaf(world: &World, name: &str) -> CertificateDer<'static> {
    let (_terminated, stream) = world.connect(world.client(), name).await;
    let stream = stream.expect("handshake");
    let chain = stream.get_ref().1.peer_certificates().expect("certificates");
    assert_eq!(chain.len(), 1);
    chain[0].clone().into_owned()
}

#[tokio::test]
async fn a_leaf_says_exactly_what_clients_check() {
    let world = World::new();
    let (_rest, ca) = X509Certificate::from_der(&world.ca).expect("CA");
    let long = format!("{}.{}.example.com", "a".repeat(60), "b".repeat(60));
    let mut serials = Vec::new();
    for name in ["api.example.com", long.as_str()] {
        let der = leaf(&world, name).await;
        let (_rest, leaf) = X509Certificate::from_der(&der).expect("leaf");
        let names = leaf.subject_alternative_name().expect("unique").expect("there");
        assert_eq!(names.value.general_names, [GeneralName::DNSName(name)]);
        assert_eq!(authority_key_id(&leaf), subject_key_id(&ca));
        assert!(subject_key_id(&leaf).is_some_and(|id| Some(id) != subject_key_id(&ca)));
        assert_ne!(leaf.public_key().raw, ca.public_key().raw);
        assert_eq!(leaf.issuer(), ca.subject());
        assert!(!leaf.is_ca());
        let usage = leaf.extended_key_usage().expect("unique").expect("there");
        assert!(usage.value.server_auth && !usage.value.any && !usage.value.client_auth);
        let validity = leaf.validity();
        assert!(validity.is_valid());
        assert_eq!(validity.not_after.timestamp() - validity.not_before.timestamp(), 25 * 3600);
        leaf.verify_signature(Some(ca.public_key())).expect("signature");
        assert_eq!(leaf.raw_serial().len(), 16);
        serials.push(leaf.raw_serial().to_vec());
    }
    assert_ne!(serials[0], serials[1]);
}

#[tokio::test]
async fn a_client_that_names_no_host_gets_a_certificate_for_the_fallback() {
    let world = World::new();
    for (name, fallback) in [("192.0.2.7", "192.0.2.7"), ("2001:db8::7", "[2001:db8::7]")] {
        let (terminated, stream) =
            connect(&world.terminator, world.client(), name, &host(fallback)).await;
        assert_eq!(terminated.expect("terminated").server_name, None);
        stream.expect("the certificate holds the address");
    }
    let (_terminated, stream) =
        connect(&world.terminator, world.client(), "192.0.2.7", &host("db.example")).await;
    assert!(stream.is_err(), "a certificate for a name does not prove an address");
}

#[tokio::test]
async fn openssl_accepts_the_chain_strictly() {
    let world = World::new();
    let der = leaf(&world, "api.example.com").await;
    let path = world.directory.path().join("leaf.der");
    fs::write(&path, &der).expect("write");
    let Ok(output) = Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslserver"])
        .args(["-verify_hostname", "api.example.com", "-CAfile"])
        .arg(world.directory.path().join("ca.pem"))
        .arg(&path)
        .output()
    else {
        println!("skipped: openssl is not installed");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_handshakes_at_once_make_one_certificate() {
    let world = Arc::new(World::new());
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { leaf(&world, "api.example.com").await })
        })
        .collect();
    let mut leaves = Vec::new();
    for task in tasks {
        leaves.push(task.await.expect("task"));
    }
    assert_eq!(world.terminator.leaves.minted(), 1);
    assert!(leaves.iter().all(|leaf| leaf == &leaves[0]));
    leaf(&world, "other.example.com").await;
    assert_eq!(world.terminator.leaves.minted(), 2);
}

// === the handshake ===

#[tokio::test]
async fn both_application_protocols_are_agreed_on_and_others_refused() {
    let world = World::new();
    let rows: [(&[&[u8]], Option<Alpn>); 5] = [
        (&[b"h2", b"http/1.1"], Some(Alpn::Http2)),
        (&[b"http/1.1"], Some(Alpn::Http1)),
        (&[b"h2"], Some(Alpn::Http2)),
        (&[], Some(Alpn::Http1)),
        (&[b"imap"], None),
    ];
    for (offered, agreed) in rows {
        let mut client = world.client();
        client.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let (terminated, _stream) = world.connect(client, "api.example.com").await;
        assert_eq!(terminated.ok().map(|terminated| terminated.alpn), agreed, "{offered:?}");
    }
}

#[tokio::test]
async fn plain_text_flows_both_ways_in_both_versions_of_tls() {
    let world = World::new();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut roots = RootCertStore::empty();
        roots.add(world.ca.clone()).expect("root");
        let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (terminated, stream) = world.connect(client, "API.Example.com").await;
        let (mut terminated, mut stream) =
            (terminated.expect("terminated"), stream.expect("stream"));
        assert_eq!(terminated.server_name.expect("name").as_str(), "api.example.com");
        stream.write_all(b"question").await.expect("write");
        stream.flush().await.expect("flush");
        let mut buffer = [0; 8];
        terminated.stream.read_exact(&mut buffer).await.expect("read");
        assert_eq!(&buffer, b"question");
        terminated.stream.write_all(b"answer").await.expect("write");
        terminated.stream.shutdown().await.expect("shutdown");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("read");
        assert_eq!(answer, b"answer");
    }
}

#[tokio::test]
async fn a_client_resumes_its_session_with_the_same_host_only() {
    let world = World::new();
    let client = world.client();
    let rows = [("api.example.com", false), ("api.example.com", true), ("www.example.com", false)];
    for (name, resumed) in rows {
        let (terminated, stream) = world.connect(client.clone(), name).await;
        let (mut terminated, mut stream) =
            (terminated.expect("terminated"), stream.expect("stream"));
        let kind = terminated.stream.get_ref().1.handshake_kind();
        assert_eq!(kind == Some(rustls::HandshakeKind::Resumed), resumed, "{name}");
        // The tickets come behind the handshake.
        terminated.stream.write_all(b"x").await.expect("write");
        terminated.stream.flush().await.expect("flush");
        stream.read_exact(&mut [0]).await.expect("read");
    }
}

#[tokio::test]
async fn a_client_that_does_not_trust_the_ca_is_told_apart() {
    let world = World::new();
    let stranger = World::new();
    let (terminated, stream) = world.connect(stranger.client(), "api.example.com").await;
    assert!(stream.is_err());
    let error = terminated.expect_err("distrusted");
    assert!(matches!(error, TerminateError::Distrusted { .. }), "{error:?}");
    assert_eq!(error.reason(), Reason::ClientHandshakeFailed);
    assert!(error.to_string().starts_with("the client does not trust the CA"), "{error}");
}

fn client_hello(world: &World, name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).expect("name");
    let mut client = rustls::ClientConnection::new(Arc::new(world.client()), name).expect("client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("hello");
    bytes
}

/// A stream that is behind a complete hello, and the agent's end of it.
async fn behind_the_hello(world: &World) -> (TlsHello<DuplexStream>, DuplexStream) {
    let (mut agent, gateway) = duplex(64 * 1024);
    let name = ServerName::try_from("api.example.com").expect("name");
    let mut client = rustls::ClientConnection::new(Arc::new(world.client()), name).expect("client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("hello");
    agent.write_all(&bytes).await.expect("write");
    let Ok(Sniffed::Tls(hello)) = sniff(gateway).await else { panic!("no hello") };
    (hello, agent)
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_ends_after_the_time_limit() {
    let world = World::new();
    let (hello, _agent) = behind_the_hello(&world).await;
    let start = tokio::time::Instant::now();
    let error = world.terminator.terminate(hello, &host("a.example")).await.expect_err("timeout");
    assert!(matches!(error, TerminateError::Timeout), "{error:?}");
    assert_eq!(start.elapsed(), HANDSHAKE_TIMEOUT);
}

#[tokio::test]
async fn a_client_that_closes_or_talks_nonsense_fails_the_handshake() {
    let world = World::new();
    let (hello, agent) = behind_the_hello(&world).await;
    drop(agent);
    let error = world.terminator.terminate(hello, &host("a.example")).await.expect_err("closed");
    assert!(matches!(error, TerminateError::Closed), "{error:?}");

    let (hello, mut agent) = behind_the_hello(&world).await;
    agent.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("write");
    let error = world.terminator.terminate(hello, &host("a.example")).await.expect_err("nonsense");
    assert!(matches!(error, TerminateError::Handshake { .. }), "{error:?}");
    assert_eq!(error.reason(), Reason::ClientHandshakeFailed);
}

#[tokio::test]
async fn a_second_hello_does_not_change_the_first() {
    let world = World::new();
    let second = client_hello(&world, "second.example");
    // In one piece with the first.
    let (mut agent, gateway) = duplex(64 * 1024);
    let both = [client_hello(&world, "first.example"), second.clone()].concat();
    agent.write_all(&both).await.expect("write");
    let Ok(Sniffed::Tls(hello)) = sniff(gateway).await else { panic!("no hello") };
    assert_eq!(hello.server_name.as_ref().expect("name").as_str(), "first.example");
    agent.shutdown().await.expect("shutdown");
    let outcome = world.terminator.terminate(hello, &host("a.example")).await;
    assert_eq!(outcome.expect_err("two hellos").reason(), Reason::ClientHandshakeFailed);
    // Behind it.
    let (hello, mut agent) = behind_the_hello(&world).await;
    agent.write_all(&second).await.expect("write");
    let outcome = world.terminator.terminate(hello, &host("a.example")).await;
    let error = outcome.expect_err("two hellos");
    assert!(matches!(error, TerminateError::Handshake { .. }), "{error:?}");
}
