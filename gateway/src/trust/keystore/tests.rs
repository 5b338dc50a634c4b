use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::terminate::Authority;

fn anchors() -> Anchors {
    let directory = tempfile::tempdir().expect("directory");
    let pem = Authority::open(directory.path()).expect("authority").ca_pem().to_owned();
    Anchors::new(&pem).expect("anchors")
}

#[test]
fn an_empty_store_gets_the_anchors_and_the_second_time_nothing() {
    let anchors = anchors();
    let store = extended(b"", &anchors).expect("store");
    assert!(has(&store, &anchors));
    assert_eq!(extended(&store, &anchors).expect("store"), store);
    let later = self::anchors();
    let both = extended(&store, &later).expect("store");
    assert!(has(&both, &later) && has(&both, &anchors));
}

#[test]
fn what_another_password_protects_or_nobody_knows_is_refused() {
    let anchors = anchors();
    let mut store = extended(b"", &anchors).expect("store");
    if let Some(last) = store.last_mut() {
        *last ^= 1;
    }
    assert_eq!(extended(&store, &anchors), Err(KeystoreError::Password));
    for unknown in [&b"x"[..], MAGIC, &[0x30, 0x00], &[0x30, 0x82], b"-----BEGIN"] {
        assert_eq!(extended(unknown, &anchors), Err(KeystoreError::Unknown), "{unknown:?}");
    }
}

/// Runs Java's own tool; None where it is not installed.
fn keytool(arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new("keytool").args(arguments).output() else {
        println!("skipped: keytool is not installed");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}");
    Some(text)
}

/// How many entries Java finds, with the usual password and with none.
fn java_counts(store: &Path) -> Option<[usize; 2]> {
    let path = store.to_str().expect("text");
    let with = keytool(&["-list", "-keystore", path, "-storepass", PASSWORD])?;
    // Without a terminal, the tool takes an empty answer for no password.
    let without = keytool(&["-list", "-keystore", path])?;
    Some([with, without].map(|text| text.matches("trustedCertEntry").count()))
}

#[test]
fn java_reads_what_is_made_of_each_kind_of_store() {
    let folder = tempfile::tempdir().expect("directory");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let known = anchors();
    fs::write(path("ca.pem"), known.iter().map(|one| one.pem.clone()).collect::<String>())
        .expect("write");
    let import = |kind: &str, more: &[&str]| {
        let (store, ca) = (path(kind), path("ca.pem"));
        let mut arguments = vec!["-importcert", "-noprompt", "-alias", "a", "-file", &ca];
        arguments.extend(["-keystore", &store, "-storepass", PASSWORD]);
        arguments.extend(more);
        keytool(&arguments)?;
        Some(fs::read(store).expect("store"))
    };
    let open = [
        "-storetype",
        "PKCS12",
        "-J-Dkeystore.pkcs12.certProtectionAlgorithm=NONE",
        "-J-Dkeystore.pkcs12.macAlgorithm=NONE",
    ];
    let Some(jks) = import("jks", &["-storetype", "JKS"]) else { return };
    let Some(pkcs12) = import("pkcs12", &open) else { return };
    let Some(encrypted) = import("encrypted", &["-storetype", "PKCS12"]) else { return };
    for content in [jks, pkcs12] {
        assert!(has(&content, &known));
        let store = extended(&content, &anchors()).expect("store");
        assert!(has(&store, &known));
        fs::write(path("extended"), store).expect("write");
        let counts = java_counts(folder.path().join("extended").as_path());
        assert_eq!(counts, Some([2, 2]));
    }
    assert_eq!(extended(&encrypted, &anchors()), Err(KeystoreError::Encrypted));
}

#[test]
fn the_systems_own_store_survives_whole() {
    let path = Path::new("/etc/ssl/certs/java/cacerts");
    let Ok(content) = fs::read(path) else {
        println!("skipped: this system has no store of Java's");
        return;
    };
    let folder = tempfile::tempdir().expect("directory");
    let copy = folder.path().join("cacerts");
    fs::write(&copy, extended(&content, &anchors()).expect("store")).expect("write");
    let (Some(before), Some(after)) = (java_counts(path), java_counts(&copy)) else { return };
    assert_eq!(after, before.map(|count| count + 1));
}
