//! The certificate authority: `ca.key` and `ca.pem` in the state directory, made at first use.
//!
//! Processes that start at the same time end with the same CA. A CA that does not fit together, has expired or
//! lay open is refused with the remedy; nothing is replaced silently, because every workload that trusts the old
//! one would have to be told.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::error::Unspecified;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::files::{FileError, LockedDir};
use super::key::{EcKey, KeyError, pem_section};
use super::rotation;

/// The gateway's own CA: its certificate, and the key that signs the certificates of hosts.
pub struct Authority {
    issuer: Issuer<'static, EcKey>,
    pem: String,
    /// The certificate that will take its place, as one PEM section.
    next: Option<String>,
    /// When that is to happen.
    signs_until: Option<OffsetDateTime>,
    opened: Stamp,
    not_after: OffsetDateTime,
}

/// Why there is no CA. Each text names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file or the directory is unusable.
    #[error(transparent)]
    File(#[from] FileError),
    /// The certificate without its key.
    #[error("{} is there and {} is not: restore the key, or remove the certificate to make a new CA", certificate.display(), key.display())]
    KeyMissing {
        /// The certificate.
        certificate: PathBuf,
        /// The missing key.
        key: PathBuf,
    },
    /// The key cannot be read as one.
    #[error("the key of the CA in {} is unusable; restore it, or remove it and ca.pem to make a new CA", path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// The certificate cannot be used as that of a CA.
    #[error("the certificate of the CA in {} {problem}; restore it, or remove it and ca.key to make a new CA", path.display())]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// There is no CA to replace.
    #[error("there is no CA in {} yet: nothing trusts one that would have to be replaced", path.display())]
    NoCa {
        /// Where it would be.
        path: PathBuf,
    },
    /// A successor is there already.
    #[error("the CA is being replaced already, by that in {}", path.display())]
    Rotating {
        /// The successor's certificate.
        path: PathBuf,
    },
    /// Key generation failed for want of randomness.
    #[error("the system gives no randomness for the key of the CA")]
    Random,
    /// Signing the CA's own certificate failed.
    #[error("the certificate of the CA could not be made")]
    Sign {
        /// What the library says.
        #[source]
        source: rcgen::Error,
    },
}

impl Authority {
    /// Opens the CA in `state_dir`, and makes it where there is none.
    ///
    /// # Errors
    /// When the files are unusable, do not belong together, or could have been read by others.
    pub fn open(state_dir: &Path) -> Result<Self, AuthorityError> {
        let directory = LockedDir::open(state_dir)?;
        rotation::take_over_if_due(&directory, OffsetDateTime::now_utc())?;
        let mut authority = Self::open_current(&directory)?;
        authority.next = rotation::next_pem(&directory)?;
        authority.signs_until = rotation::signs_from(&directory)?;
        authority.opened = Stamp::of(state_dir);
        Ok(authority)
    }

    fn open_current(directory: &LockedDir) -> Result<Self, AuthorityError> {
        let key = directory.read_secret(KEY_FILE)?;
        let certificate = directory.read_public(CERTIFICATE_FILE)?;
        match (key, certificate) {
            (Some(key), Some(certificate)) => {
                let key = parse_key(directory, &key)?;
                Self::load(key, &certificate, &directory.join(CERTIFICATE_FILE))
            }
            (None, None) => {
                let (key, text) = new_key()?;
                directory.write_secret(KEY_FILE, text.as_bytes())?;
                Self::create(key, directory)
            }
            // The key is written first: making the CA was interrupted, and nobody has seen a certificate.
            (Some(key), None) => Self::create(parse_key(directory, &key)?, directory),
            (None, Some(_certificate)) => Err(AuthorityError::KeyMissing {
                certificate: directory.join(CERTIFICATE_FILE),
                key: directory.join(KEY_FILE),
            }),
        }
    }

    /// The certificate of the CA that signs, as one PEM section.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// The certificates that workloads must trust: that of the CA, and while it is being replaced its successor's.
    #[must_use]
    pub fn trusted_pem(&self) -> String {
        [&self.pem, self.next.as_deref().unwrap_or_default()].concat()
    }

    /// Whether opening the directory that this was opened from would give another: a successor was made for it or has
    /// taken over, or is to take over now.
    #[must_use]
    pub fn is_outdated(&self, state_dir: &Path, now: OffsetDateTime) -> bool {
        let is_due = self.next.is_some() && self.signs_until.is_some_and(|until| now >= until);
        is_due || Stamp::of(state_dir) != self.opened
    }

    /// The end of the CA's validity, which no certificate of a host outlives.
    pub(super) fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Signs a certificate for `public_key`.
    pub(super) fn sign(
        &self,
        params: &CertificateParams,
        public_key: &impl PublicKeyData,
    ) -> Result<Certificate, rcgen::Error> {
        params.signed_by(public_key, &self.issuer)
    }

    fn create(key: EcKey, directory: &LockedDir) -> Result<Self, AuthorityError> {
        let pem = new_certificate(&key, OffsetDateTime::now_utc())?;
        directory.write_public(CERTIFICATE_FILE, pem.as_bytes())?;
        Self::load(key, pem.as_bytes(), &directory.join(CERTIFICATE_FILE))
    }

    fn load(key: EcKey, certificate: &[u8], path: &Path) -> Result<Self, AuthorityError> {
        let refuse = |problem| AuthorityError::Certificate { path: path.to_path_buf(), problem };
        let Ok(der) = CertificateDer::from_pem_slice(certificate) else {
            return Err(refuse("is not PEM"));
        };
        let not_after = check_certificate(&der, &key).map_err(refuse)?;
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|source| AuthorityError::Sign { source })?;
        let pem = pem_section("CERTIFICATE", &der).to_string();
        let opened = Stamp::default();
        Ok(Self { issuer, pem, next: None, signs_until: None, opened, not_after })
    }
}

/// What tells the files of one time from those of another: they are replaced by renaming, never written to.
#[derive(PartialEq, Eq, Default)]
struct Stamp([Option<(u64, i64, i64)>; 2]);

impl Stamp {
    fn of(state_dir: &Path) -> Self {
        Self([CERTIFICATE_FILE, rotation::NEXT_CERTIFICATE].map(|name| {
            let found = std::fs::metadata(state_dir.join(name)).ok()?;
            Some((found.ino(), found.ctime(), found.ctime_nsec()))
        }))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A key, and the text of its file.
pub(super) fn new_key() -> Result<(EcKey, Zeroizing<String>), AuthorityError> {
    let key = EcKey::generate().map_err(no_randomness)?;
    let pkcs8 = key.to_pkcs8().map_err(no_randomness)?;
    let text = pem_section("PRIVATE KEY", pkcs8.as_ref());
    Ok((key, text))
}

/// A certificate of a CA for this key, as one PEM section.
pub(super) fn new_certificate(
    key: &EcKey,
    now: OffsetDateTime,
) -> Result<Zeroizing<String>, AuthorityError> {
    let certificate =
        ca_params(now)?.self_signed(key).map_err(|source| AuthorityError::Sign { source })?;
    Ok(pem_section("CERTIFICATE", certificate.der()))
}

fn parse_key(directory: &LockedDir, text: &[u8]) -> Result<EcKey, AuthorityError> {
    EcKey::from_pem(text)
        .map_err(|source| AuthorityError::Key { path: directory.join(KEY_FILE), source })
}

/// The end of the validity, or what is wrong.
fn check_certificate(der: &[u8], key: &EcKey) -> Result<OffsetDateTime, &'static str> {
    let Ok((_rest, certificate)) = X509Certificate::from_der(der) else {
        return Err("is not an X.509 certificate");
    };
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err("does not belong to the key in ca.key");
    }
    if !matches!(certificate.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca) {
        return Err("is not that of a CA (basicConstraints)");
    }
    if !matches!(certificate.key_usage(), Ok(Some(usage)) if usage.value.key_cert_sign()) {
        return Err("may not sign certificates (keyUsage)");
    }
    let validity = certificate.validity();
    let now = OffsetDateTime::now_utc();
    if now < validity.not_before.to_datetime() {
        return Err("is not valid yet (is the clock right?)");
    }
    if now >= validity.not_after.to_datetime() {
        return Err("has expired");
    }
    Ok(validity.not_after.to_datetime())
}

fn ca_params(now: OffsetDateTime) -> Result<CertificateParams, AuthorityError> {
    let mut tag = [0; 4];
    aws_lc_rs::rand::fill(&mut tag).map_err(no_randomness)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // The tag tells CAs of several hosts apart in a trust store, and in OpenSSL's directories by subject.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Tollgate CA {:08x}", u32::from_be_bytes(tag)));
    params.serial_number = Some(random_serial().map_err(no_randomness)?);
    params.not_before = now - CA_BACKDATED;
    params.not_after = now + CA_VALIDITY;
    // It signs certificates of hosts and no further CA.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// 127 random bits: positive, and in the shortest form that DER demands.
pub(super) fn random_serial() -> Result<SerialNumber, Unspecified> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)?;
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn no_randomness(_unspecified: Unspecified) -> AuthorityError {
    AuthorityError::Random
}

pub(super) const KEY_FILE: &str = "ca.key";
pub(super) const CERTIFICATE_FILE: &str = "ca.pem";
/// The CA is trusted only by workloads on this host, and replacing it means to restart them.
const CA_VALIDITY: Duration = Duration::days(3650);
/// For containers and virtual machines whose clock is behind.
const CA_BACKDATED: Duration = Duration::days(1);
