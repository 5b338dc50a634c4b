//! Another CA in the place of this one, with a time in which workloads trust both.
//!
//! | files | meaning |
//! |---|---|
//! | `ca.key`, `ca.pem` | the CA that signs |
//! | `ca.next.key` alone | preparing was interrupted; nobody has seen its certificate |
//! | `ca.next.key`, `ca.next.pem` | its successor, trusted already; it takes over at the time in `ca.next.from` |
//! | `ca.next.pem` alone | taking over was interrupted after the key; it is finished first |
//!
//! The successor takes over when the CA is opened after that time. A `tollgate run` goes on with the CA that it opened,
//! and its workload trusts both; the daemon opens it anew when its files have changed or the time has come.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::authority::{AuthorityError, CERTIFICATE_FILE, KEY_FILE, new_certificate, new_key};
use super::files::LockedDir;
use super::key::pem_section;

/// What there is to say of a certificate of the CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its file.
    pub path: PathBuf,
    /// SHA-256 over the certificate, in hexadecimal digits.
    pub fingerprint: String,
    /// From when it is valid.
    pub not_before: OffsetDateTime,
    /// Until when.
    pub not_after: OffsetDateTime,
    /// When it takes over; absent for the one that signs now.
    pub signs_from: Option<OffsetDateTime>,
}

/// Prepares a successor that takes over after `overlap`.
///
/// # Errors
/// When there is no CA, or one is being replaced already, or the files are unusable.
pub fn rotate(state_dir: &Path, overlap: Duration) -> Result<Vec<Described>, AuthorityError> {
    let directory = LockedDir::open(state_dir)?;
    let now = OffsetDateTime::now_utc();
    take_over_if_due(&directory, now)?;
    if directory.read_public(CERTIFICATE_FILE)?.is_none() {
        return Err(AuthorityError::NoCa { path: directory.join(CERTIFICATE_FILE) });
    }
    if directory.read_public(NEXT_CERTIFICATE)?.is_some() {
        return Err(AuthorityError::Rotating { path: directory.join(NEXT_CERTIFICATE) });
    }
    let from = now + overlap;
    let key = new_key()?;
    directory.write_secret(NEXT_KEY, key.1.as_bytes())?;
    directory.write_public(NEXT_FROM, from.unix_timestamp().to_string().as_bytes())?;
    let pem = new_certificate(&key.0, now)?;
    directory.write_public(NEXT_CERTIFICATE, pem.as_bytes())?;
    described(&directory)
}

/// The CA's certificates: the one that signs, and its successor if there is one. Empty where there is no CA yet.
///
/// # Errors
/// When the files are unusable.
pub fn describe(state_dir: &Path) -> Result<Vec<Described>, AuthorityError> {
    described(&LockedDir::open(state_dir)?)
}

/// The certificates that workloads must trust, in one text. Empty where there is no CA yet.
///
/// # Errors
/// When the files are unusable.
pub fn trusted_pem(state_dir: &Path) -> Result<String, AuthorityError> {
    let directory = LockedDir::open(state_dir)?;
    let mut text = String::new();
    for name in [CERTIFICATE_FILE, NEXT_CERTIFICATE] {
        if let Some(pem) = directory.read_public(name)? {
            text.push_str(&section(&directory, name, &pem)?);
        }
    }
    Ok(text)
}

/// Lets the successor take over if its time has come, or finishes what was interrupted.
pub(super) fn take_over_if_due(
    directory: &LockedDir,
    now: OffsetDateTime,
) -> Result<(), AuthorityError> {
    if directory.read_public(NEXT_CERTIFICATE)?.is_none() {
        return Ok(());
    }
    if directory.read_secret(NEXT_KEY)?.is_some() {
        if signs_from(directory)?.is_none_or(|from| now < from) {
            return Ok(());
        }
        directory.rename(NEXT_KEY, KEY_FILE)?;
    }
    directory.rename(NEXT_CERTIFICATE, CERTIFICATE_FILE)?;
    Ok(directory.remove(NEXT_FROM)?)
}

/// The successor's certificate as one PEM section.
pub(super) fn next_pem(directory: &LockedDir) -> Result<Option<String>, AuthorityError> {
    let pem = directory.read_public(NEXT_CERTIFICATE)?;
    pem.map(|pem| section(directory, NEXT_CERTIFICATE, &pem)).transpose()
}

/// None where the time cannot be read: then the successor waits for ever, which is safe.
pub(super) fn signs_from(directory: &LockedDir) -> Result<Option<OffsetDateTime>, AuthorityError> {
    let text = directory.read_public(NEXT_FROM)?;
    let seconds = text.and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok());
    Ok(seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()))
}

fn section(directory: &LockedDir, name: &str, pem: &[u8]) -> Result<String, AuthorityError> {
    Ok(pem_section("CERTIFICATE", &der(directory, name, pem)?).to_string())
}

fn der(
    directory: &LockedDir,
    name: &str,
    pem: &[u8],
) -> Result<CertificateDer<'static>, AuthorityError> {
    CertificateDer::from_pem_slice(pem).map_err(|_no_pem| AuthorityError::Certificate {
        path: directory.join(name),
        problem: "is not PEM",
    })
}

fn described(directory: &LockedDir) -> Result<Vec<Described>, AuthorityError> {
    let mut list = Vec::new();
    for name in [CERTIFICATE_FILE, NEXT_CERTIFICATE] {
        let Some(pem) = directory.read_public(name)? else { continue };
        let path = directory.join(name);
        let der = der(directory, name, &pem)?;
        let Ok((_rest, certificate)) = X509Certificate::from_der(&der) else {
            let problem = "is not an X.509 certificate";
            return Err(AuthorityError::Certificate { path, problem });
        };
        let validity = certificate.validity();
        let digits = |byte: &u8| format!("{byte:02x}");
        list.push(Described {
            path,
            fingerprint: digest(&SHA256, &der).as_ref().iter().map(digits).collect(),
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
            signs_from: if name == NEXT_CERTIFICATE { signs_from(directory)? } else { None },
        });
    }
    Ok(list)
}

const NEXT_KEY: &str = "ca.next.key";
pub(super) const NEXT_CERTIFICATE: &str = "ca.next.pem";
/// Seconds since 1970.
const NEXT_FROM: &str = "ca.next.from";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::terminate::Authority;

    fn files(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    const SETTLED: [&str; 3] = ["ca.key", "ca.lock", "ca.pem"];

    #[test]
    fn both_are_trusted_until_the_successor_takes_over_and_then_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let before = Authority::open(folder.path()).unwrap();
        let old = before.ca_pem().to_owned();
        let described = rotate(folder.path(), Duration::hours(1)).unwrap();
        assert_eq!(described.len(), 2);
        let now = OffsetDateTime::now_utc();
        assert!(before.is_outdated(folder.path(), now), "there is a successor to trust");
        let during = Authority::open(folder.path()).unwrap();
        assert!(!during.is_outdated(folder.path(), now));
        assert!(during.is_outdated(folder.path(), now + Duration::hours(1)), "it takes over");
        assert_eq!(during.ca_pem(), old, "the old one still signs");
        let next = during.trusted_pem().strip_prefix(&old).unwrap().to_owned();
        assert_eq!(trusted_pem(folder.path()).unwrap(), during.trusted_pem());
        assert!(matches!(
            rotate(folder.path(), Duration::ZERO),
            Err(AuthorityError::Rotating { .. })
        ));
        fs::write(folder.path().join(NEXT_FROM), "1").unwrap();
        let after = Authority::open(folder.path()).unwrap();
        assert!(during.is_outdated(folder.path(), now), "another process has let it take over");
        assert_eq!((after.ca_pem(), after.trusted_pem()), (&*next, next.clone()));
        assert_eq!(files(folder.path()), SETTLED);
    }

    #[test]
    fn what_was_interrupted_is_finished_or_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let old = Authority::open(folder.path()).unwrap().ca_pem().to_owned();
        // Between key and certificate of the successor.
        rotate(folder.path(), Duration::hours(1)).unwrap();
        fs::remove_file(path(NEXT_CERTIFICATE)).unwrap();
        assert_eq!(Authority::open(folder.path()).unwrap().trusted_pem(), old);
        rotate(folder.path(), Duration::hours(1)).unwrap();
        // Between the two renames.
        fs::rename(path(NEXT_KEY), path(KEY_FILE)).unwrap();
        let after = Authority::open(folder.path()).unwrap();
        assert_ne!(after.ca_pem(), old);
        assert_eq!(files(folder.path()), SETTLED);
        // A time that cannot be read is never reached.
        rotate(folder.path(), Duration::ZERO).unwrap();
        fs::write(path(NEXT_FROM), "soon").unwrap();
        assert_eq!(Authority::open(folder.path()).unwrap().ca_pem(), after.ca_pem());
    }

    #[test]
    fn there_is_nothing_to_rotate_where_there_is_no_ca() {
        let folder = tempfile::tempdir().unwrap();
        let refused = rotate(folder.path(), Duration::ZERO);
        assert!(matches!(refused, Err(AuthorityError::NoCa { .. })), "{refused:?}");
        assert_eq!(describe(folder.path()).unwrap(), []);
        assert_eq!(trusted_pem(folder.path()).unwrap(), "");
    }
}
