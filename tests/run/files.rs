//! What the command finds: the CA trusted in environment and files, and nothing of what Tollgate keeps from it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::tollgate::{Host, finish};

const SECRET: &str = "tops3cret-value";

fn credentials(host: &Host) -> String {
    let file = host.folder().join("secrets/mail");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, SECRET).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    format!(
        "[[credential]]\nname = \"mail\"\nsource = {{ file = \"{}\" }}\nhosts = [\"mail.example.com\"]\n\
         inject = {{ header = \"Authorization\", format = \"Bearer {{value}}\" }}\nagents = [\"tester\"]\n\
         env = \"MAIL_TOKEN\"\n\
         [[credential]]\nname = \"chat\"\nsource = {{ env = \"CHAT_TOKEN\" }}\nhosts = [\"chat.example.com\"]\n\
         inject = {{ header = \"Authorization\", format = \"Bearer {{value}}\" }}\nagents = [\"tester\"]\n",
        file.display()
    )
}

fn with_credentials() -> Option<Host> {
    let host = Host::new("")?;
    host.configure(&credentials(&host));
    Some(host)
}

#[test]
fn a_credential_s_variable_is_in_no_process_of_the_workload() {
    let Some(host) = with_credentials() else { return };
    let look = "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'; echo done";
    let mut governed = host.run(&["sh", "-c", look]);
    governed.env("CHAT_TOKEN", SECRET).env("HARMLESS", "harmless-value");
    let seen = finish(&mut governed).success();
    assert!(!seen.contains(SECRET) && !seen.contains("CHAT_TOKEN"), "{seen}");
    assert!(seen.contains("HARMLESS=harmless-value"), "other variables stay: {seen}");
    let mut ungoverned = host.plain(["sh", "-c", "env; echo done"]);
    ungoverned.env("CHAT_TOKEN", SECRET);
    assert!(finish(&mut ungoverned).success().contains(SECRET), "the control");
}

#[test]
fn a_placeholder_stands_where_the_caller_has_a_key_of_its_own() {
    let Some(host) = with_credentials() else { return };
    let mut governed = host.run(&["sh", "-c", "echo $MAIL_TOKEN; env"]);
    governed.env("CHAT_TOKEN", "x").env("MAIL_TOKEN", "a key of the caller");
    let seen = finish(&mut governed).success();
    assert!(seen.starts_with("tollgate-placeholder-mail\n"), "{seen}");
    assert!(!seen.contains("a key of the caller"), "{seen}");
    let mut ungoverned = host.plain(["sh", "-c", "echo $MAIL_TOKEN"]);
    ungoverned.env("MAIL_TOKEN", "a key of the caller");
    assert_eq!(finish(&mut ungoverned).success(), "a key of the caller\n", "the control");
}

#[test]
fn secret_files_state_and_audit_are_hidden_from_a_root_command() {
    let Some(host) = with_credentials() else { return };
    let folder = host.folder().display().to_string();
    let look = format!(
        "cat {folder}/secrets/mail; ls -A {folder}/state; cat {folder}/audit.jsonl; \
         cat {folder}/state/*.key {folder}/state/*.pem 2>/dev/null; ls -A /run/tollgate"
    );
    // The first run makes state and a record; the second looks for them.
    let mut first = host.run(&["python3", "-c", "import socket; socket.socket(2, 3, 1)"]);
    first.env("CHAT_TOKEN", "x");
    finish(&mut first);
    let mut second = host.run(&["sh", "-c", &look]);
    let seen = finish(second.env("CHAT_TOKEN", "x"));
    assert_eq!(seen.stdout, "ca-bundle.pem\nca.pem\nresolv.conf\n", "{seen:?}");
    let control = finish(&mut host.plain(["sh", "-c", &look])).stdout;
    for part in [SECRET, "kernel_refused", "PRIVATE KEY"] {
        assert!(control.contains(part), "the control lacks {part}: {control}");
    }
}

#[test]
fn a_working_directory_inside_what_is_hidden_does_not_show_it() {
    let Some(host) = with_credentials() else { return };
    let state = host.folder().join("state");
    finish(host.run(&["true"]).env("CHAT_TOKEN", "x")).success();
    assert!(fs::read_dir(&state).unwrap().count() > 0, "there is something to hide");
    let run = host.run_words(&[], &["sh", "-c", "ls -A .; ls -A ..; pwd"]);
    let mut inside = host.plain(["env", "--chdir"]);
    inside.arg(&state).args(run).env("CHAT_TOKEN", "x");
    let seen = finish(&mut inside).success();
    assert_eq!(
        seen,
        format!("audit.jsonl\nsecrets\nstate\ntollgate.toml\n{}\n", state.display()),
        "an empty directory at the same place"
    );
}

#[test]
fn the_hidden_stays_hidden_from_a_command_that_unmounts_or_makes_namespaces() {
    let Some(host) = with_credentials() else { return };
    let secret = host.folder().join("secrets/mail");
    let secret = secret.display();
    // With what a user namespace gives, if this kernel lets the command have one at all.
    let attempts = [
        format!("umount {secret}; cat {secret}"),
        format!("unshare -m sh -c 'umount {secret}; cat {secret}'"),
        format!("unshare -Urm sh -c 'umount {secret}; umount -l {secret}; cat {secret}'"),
        format!("unshare -Urmpf --mount-proc sh -c 'umount {secret}; cat {secret}'"),
        format!("nsenter -t 1 -m cat {secret}"),
        format!("cat /proc/1/root{secret}"),
    ];
    for attempt in attempts {
        let mut run = host.run(&["sh", "-c", &attempt]);
        let seen = finish(run.env("CHAT_TOKEN", "x"));
        assert!(!seen.stdout.contains(SECRET), "{attempt}: {seen:?}");
    }
}

#[test]
fn the_command_has_the_variables_that_make_clients_trust_the_ca() {
    let Some(host) = Host::new("") else { return };
    let seen = host.sh("env").success();
    let bundle = "/run/tollgate/ca-bundle.pem";
    for name in [
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "PIP_CERT",
        "AWS_CA_BUNDLE",
        "CARGO_HTTP_CAINFO",
    ] {
        assert!(seen.lines().any(|line| line == format!("{name}={bundle}")), "{name}: {seen}");
    }
    for name in ["NODE_EXTRA_CA_CERTS", "DENO_CERT"] {
        assert!(seen.lines().any(|line| line == format!("{name}=/run/tollgate/ca.pem")), "{name}");
    }
}

#[test]
fn the_distribution_s_bundles_hold_the_ca_inside_and_not_outside() {
    let Some(host) = Host::new("") else { return };
    let Some(system) =
        gateway::trust::bundle::SYSTEM_BUNDLE_PATHS.iter().find(|path| Path::new(path).is_file())
    else {
        assert!(std::env::var_os("CI").is_none(), "no bundle of the distribution to test with");
        println!("SKIPPED: no bundle of the distribution here (ca-certificates)");
        return;
    };
    let before = fs::read(system).unwrap();
    let look =
        format!("cat /run/tollgate/ca.pem; echo ====; cat {system}; echo ====; cat $SSL_CERT_FILE");
    let seen = host.sh(&look).success();
    let parts: Vec<&str> = seen.split("====\n").collect();
    let ca = parts[0].trim();
    assert!(ca.starts_with("-----BEGIN CERTIFICATE-----"), "{ca}");
    assert!(parts[1].contains(ca), "{system} does not hold the CA");
    assert!(parts[2].contains(ca), "the bundle does not hold the CA");
    assert_eq!(parts[1], parts[2]);
    // The system's own roots are still there.
    let count = |text: &str| text.matches("BEGIN CERTIFICATE").count();
    assert!(count(parts[1]) > 1);
    assert!(fs::read(system).unwrap() == before, "the host's file was touched");
    let write = host.sh(&format!("echo x >> {system}"));
    assert!(write.stderr.contains("Read-only file system"), "{write:?}");
}

#[test]
fn names_are_asked_of_tollgate() {
    let Some(host) = Host::new("") else { return };
    if !Path::new("/etc/resolv.conf").is_file() {
        println!("SKIPPED: this machine has no /etc/resolv.conf to stand in for");
        return;
    }
    assert!(host.sh("cat /etc/resolv.conf").success().ends_with("nameserver 127.0.0.1\n"));
}
