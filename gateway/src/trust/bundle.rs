//! The roots of a workload: those of its system, and the CA.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::asn1_rs::{Tag, ToDer as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A bundle is there and cannot be read.
    #[error("cannot read the system's roots in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A bundle is too large to be one.
    #[error("{} is longer than {BUNDLE_MAX_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The CA's own certificate is no certificate: a workload with such a bundle would trust nothing.
    #[error("the CA's certificate is malformed")]
    Authority,
}

/// What workloads trust besides their own roots: the CA's certificate, and while it is replaced its successor's.
#[derive(Debug, Clone)]
pub struct Anchors {
    certificates: Vec<Anchor>,
}

/// One certificate of a CA.
#[derive(Debug, Clone)]
pub(super) struct Anchor {
    /// Its PEM section, with the last end of line.
    pub(super) pem: String,
    pub(super) der: CertificateDer<'static>,
}

/// Where distributions keep the one file of roots that their programs read. Some are links to others.
pub const SYSTEM_BUNDLE_PATHS: &[&str] = &[
    // Debian, Ubuntu, Alpine, Arch, Gentoo, NixOS.
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora, RHEL, Amazon Linux; Arch keeps it for compatibility.
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    // Arch.
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
    // openSUSE, SLES.
    "/etc/ssl/ca-bundle.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
    // Alpine's and Arch's OpenSSL and LibreSSL.
    "/etc/ssl/cert.pem",
    // Debian's OpenSSL.
    "/usr/lib/ssl/cert.pem",
];

/// [`SYSTEM_BUNDLE_PATHS`].
#[must_use]
pub fn system_bundles() -> Vec<PathBuf> {
    SYSTEM_BUNDLE_PATHS.iter().map(PathBuf::from).collect()
}

/// The certificates of the first of `system` that exists, and the CA behind them.
///
/// What is malformed is dropped, because some clients refuse a whole bundle for one bad entry. Without any system
/// bundle (minimal images) the CA stands alone: everything that the workload can reach is signed by it.
///
/// # Errors
/// When a bundle exists and cannot be read, or `ca_pem` is no certificate.
pub fn merged(system: &[PathBuf], ca_pem: &str) -> Result<String, BundleError> {
    let anchors = Anchors::new(ca_pem)?;
    for path in system {
        if let Some(content) = read(path)? {
            return Ok(extended(&content, &anchors));
        }
    }
    Ok(extended(b"", &anchors))
}

/// `content`, a bundle in PEM, without what is malformed in it, and the anchors behind it. A bundle that also has
/// certificates in OpenSSL's own forms is kept as it is: some clients read them.
pub(super) fn extended(content: &[u8], anchors: &Anchors) -> String {
    let mut text = String::new();
    let is_kept = OPENSSL_FORMS.iter().any(|form| find(content, form).is_some());
    if is_kept {
        text = String::from_utf8_lossy(content).into_owned();
        text.push('\n');
    }
    for (section, der) in if is_kept { Vec::new() } else { certificates(content) } {
        // It may be there already, in an image that was committed from a governed workload.
        if !anchors.contain(&der) {
            push_section(&mut text, section);
        }
    }
    for anchor in anchors.iter() {
        text.push_str(&anchor.pem);
    }
    text
}

/// How many well-formed certificates a bundle has, and how many of them are anchors.
pub(super) fn count_of(content: &[u8], anchors: &Anchors) -> (usize, usize) {
    let found = certificates(content);
    (found.len(), anchors.iter().filter(|a| found.iter().any(|(_, der)| *der == a.der)).count())
}

impl Anchors {
    /// The certificates of a PEM text.
    ///
    /// # Errors
    /// When there is none in it.
    pub fn new(pem: &str) -> Result<Self, BundleError> {
        let certificates: Vec<Anchor> = certificates(pem.as_bytes())
            .into_iter()
            .map(|(section, der)| {
                let mut pem = String::new();
                push_section(&mut pem, section);
                Anchor { pem, der }
            })
            .collect();
        if certificates.is_empty() {
            return Err(BundleError::Authority);
        }
        Ok(Self { certificates })
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Anchor> {
        self.certificates.iter()
    }

    pub(super) fn contain(&self, der: &[u8]) -> bool {
        self.certificates.iter().any(|anchor| anchor.der.as_ref() == der)
    }
}

/// The name under which OpenSSL looks for a certificate in a directory (`HASH.0`), as `openssl x509 -hash` prints
/// it. None for a certificate that is malformed, or names its subject in a string type that nobody uses.
#[must_use]
pub fn openssl_subject_hash(der: &[u8]) -> Option<String> {
    let (_rest, certificate) = X509Certificate::from_der(der).ok()?;
    let mut canonical = Vec::new();
    for set in certificate.subject().iter_rdn() {
        let mut attributes = Vec::new();
        for attribute in set.iter() {
            attributes.push(canonical_attribute(attribute)?);
        }
        // DER orders the members of a SET OF by their encoding.
        attributes.sort();
        canonical.extend(der_value(DER_SET, &attributes.concat())?);
    }
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &canonical);
    let first: [u8; 4] = hash.as_ref().get(..4)?.try_into().ok()?;
    Some(format!("{:08x}", u32::from_le_bytes(first)))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, BundleError> {
    let failed = |source| BundleError::Read { path: path.to_path_buf(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let limit = u64::try_from(BUNDLE_MAX_BYTES + 1).unwrap_or(u64::MAX);
    let mut content = Vec::new();
    file.take(limit).read_to_end(&mut content).map_err(failed)?;
    if content.len() > BUNDLE_MAX_BYTES {
        return Err(BundleError::TooLarge { path: path.to_path_buf() });
    }
    Ok(Some(content))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Debian's has about 220 KiB.
pub(super) const BUNDLE_MAX_BYTES: usize = 16 * 1024 * 1024;

/// The well-formed certificates of a PEM text, each with its section as it stands there. A damaged section ends
/// where the next one begins, and takes nothing else with it.
fn certificates(text: &[u8]) -> Vec<(&str, CertificateDer<'static>)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(begin) = find(rest, PEM_BEGIN) {
        let (_before, section) = rest.split_at(begin);
        let Some((head, body)) = section.split_at_checked(PEM_BEGIN.len()) else { break };
        let next = find(body, PEM_BEGIN).unwrap_or(body.len());
        let (body, after) = body.split_at(next);
        rest = after;
        let Some(end) = find(body, PEM_END) else { continue };
        let section = section.get(..head.len() + end + PEM_END.len()).unwrap_or_default();
        let (Ok(section), Ok(der)) =
            (std::str::from_utf8(section), CertificateDer::from_pem_slice(section))
        else {
            continue;
        };
        if matches!(X509Certificate::from_der(&der), Ok((trailing, _)) if trailing.is_empty()) {
            found.push((section, der));
        }
    }
    found
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|window| window == pattern)
}

fn push_section(text: &mut String, section: &str) {
    text.extend(section.lines().flat_map(|line| [line.trim_end(), "\n"]));
}

const PEM_BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
const OPENSSL_FORMS: [&[u8]; 2] =
    [b"-----BEGIN TRUSTED CERTIFICATE-----", b"-----BEGIN X509 CERTIFICATE-----"];
const PEM_END: &[u8] = b"-----END CERTIFICATE-----";

/// OpenSSL's `asn1_string_canon`: as UTF-8, without outer blanks, inner runs of blanks as one, ASCII in lower case.
fn canonical_attribute(attribute: &AttributeTypeAndValue<'_>) -> Option<Vec<u8>> {
    let value = attribute.attr_value();
    let text = match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::VisibleString => {
            std::str::from_utf8(value.data).ok()?.to_owned()
        }
        Tag::T61String => value.data.iter().copied().map(char::from).collect(),
        _unused => return None,
    };
    let words: Vec<_> = text
        .split(|character: char| character.is_ascii_whitespace() || character == VERTICAL_TAB)
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    let mut members = attribute.attr_type().to_der_vec().ok()?;
    members.extend(der_value(DER_UTF8_STRING, words.join(" ").as_bytes())?);
    der_value(DER_SEQUENCE, &members)
}

/// C's `isspace` has it, Rust's ASCII white space has not.
const VERTICAL_TAB: char = '\u{b}';

fn der_value(tag: u8, content: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(content.len()).ok()?.to_be_bytes();
    let mut der = vec![tag];
    match length {
        [0, short @ 0..=0x7f] => der.push(short),
        [0, long] => der.extend([0x81, long]),
        [high, low] => der.extend([0x82, high, low]),
    }
    der.extend_from_slice(content);
    Some(der)
}

const DER_UTF8_STRING: u8 = 0x0c;
const DER_SEQUENCE: u8 = 0x30;
const DER_SET: u8 = 0x31;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::terminate::Authority;

    fn ca() -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().expect("directory");
        let pem = Authority::open(directory.path()).expect("authority").ca_pem().to_owned();
        (directory, pem)
    }

    fn count(text: &str) -> usize {
        text.matches("-----BEGIN CERTIFICATE-----").count()
    }

    #[test]
    fn the_first_bundle_that_exists_is_taken_and_the_ca_comes_last() {
        let (directory, system) = ca();
        let (_other, later) = ca();
        let (_own, authority) = ca();
        let paths: Vec<_> =
            ["missing", "first", "second"].map(|name| directory.path().join(name)).into();
        fs::write(&paths[1], format!("# roots\r\n{}", system.replace('\n', "\r\n")))
            .expect("write");
        fs::write(&paths[2], later).expect("write");
        assert_eq!(merged(&paths, &authority).expect("merged"), format!("{system}{authority}"));
    }

    #[test]
    fn damaged_sections_are_dropped_alone() {
        let (directory, good) = ca();
        let (_own, authority) = ca();
        let cut_off: String = good.lines().take(4).flat_map(|line| [line, "\n"]).collect();
        let damaged = [
            cut_off,
            "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n".to_owned(),
            "-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----\n".to_owned(),
            "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned(),
            "-----END CERTIFICATE-----\n\u{0}\u{1}text\n".to_owned(),
        ];
        let path = directory.path().join("bundle");
        for bad in &damaged {
            for content in [format!("{bad}{good}"), format!("{good}{bad}")] {
                fs::write(&path, &content).expect("write");
                let text = merged(std::slice::from_ref(&path), &authority).expect("merged");
                assert_eq!(text, format!("{good}{authority}"), "{content}");
            }
        }
        let not_utf8 = [&good.as_bytes()[..60], b"\xff", good.as_bytes(), b"\xff"].concat();
        fs::write(&path, not_utf8).expect("write");
        assert_eq!(merged(&[path], &authority).expect("merged"), format!("{good}{authority}"));
    }

    #[test]
    fn a_bundle_with_openssls_own_forms_is_kept_whole() {
        let (_directory, system) = ca();
        let (_own, authority) = ca();
        let anchors = Anchors::new(&authority).expect("anchors");
        let trusted = system.replace("BEGIN CERT", "BEGIN TRUSTED CERT");
        let text = extended(trusted.as_bytes(), &anchors);
        assert_eq!(text, format!("{trusted}\n{authority}"));
        assert_eq!(count_of(text.as_bytes(), &anchors), (1, 1));
    }

    #[test]
    fn merging_twice_adds_the_ca_once() {
        let (directory, system) = ca();
        let (_own, authority) = ca();
        let path = directory.path().join("bundle");
        fs::write(&path, system).expect("write");
        let once = merged(std::slice::from_ref(&path), &authority).expect("merged");
        fs::write(&path, &once).expect("write");
        assert_eq!(merged(&[path], &authority).expect("merged"), once);
    }

    #[test]
    fn without_a_system_bundle_the_ca_stands_alone() {
        let (directory, authority) = ca();
        let missing = directory.path().join("ca.pem/missing");
        assert_eq!(merged(&[missing], &authority).expect("merged"), authority);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_an_empty_bundle() {
        let (directory, authority) = ca();
        let is_directory = merged(&[directory.path().to_path_buf()], &authority);
        assert!(matches!(is_directory, Err(BundleError::Read { .. })), "{is_directory:?}");
        assert!(matches!(merged(&[], "no certificate"), Err(BundleError::Authority)));
    }

    #[test]
    fn the_systems_own_bundle_survives_whole() {
        let paths: Vec<_> = SYSTEM_BUNDLE_PATHS.iter().map(PathBuf::from).collect();
        let Some(path) = paths.iter().find(|path| path.exists()) else {
            println!("skipped: this system has no bundle");
            return;
        };
        let (_own, authority) = ca();
        let system = fs::read_to_string(path).expect("bundle");
        assert_eq!(count(&merged(&paths, &authority).expect("merged")), count(&system) + 1);
    }

    /// Our CA, the strings of odd subjects, and the roots of the system.
    #[test]
    fn the_hash_of_a_subject_is_that_of_openssl() {
        let (directory, own) = ca();
        let key = rcgen::KeyPair::generate().expect("key");
        let mut texts = vec![own];
        for subject in ["  Two   Blanks\u{b}And A Tab\t ", "ÄÖÜ Straße", &"x".repeat(60)] {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, subject);
            params.distinguished_name.push(rcgen::DnType::OrganizationName, "Some ORG ".repeat(30));
            texts.push(params.self_signed(&key).expect("certificate").pem());
        }
        for path in SYSTEM_BUNDLE_PATHS {
            let content = fs::read(path).unwrap_or_default();
            texts.extend(
                certificates(&content).into_iter().take(40).map(|(text, _)| text.to_owned()),
            );
        }
        for text in texts {
            let path = directory.path().join("one.pem");
            fs::write(&path, &text).expect("write");
            let Ok(output) = Command::new("openssl")
                .args(["x509", "-noout", "-hash", "-in"])
                .arg(&path)
                .output()
            else {
                println!("skipped: openssl is not installed");
                return;
            };
            let der = CertificateDer::from_pem_slice(text.as_bytes()).expect("PEM");
            let expected = String::from_utf8(output.stdout).expect("text");
            assert_eq!(openssl_subject_hash(&der).as_deref(), Some(expected.trim()), "{text}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_hash() {
        assert_eq!(openssl_subject_hash(b""), None);
        assert_eq!(openssl_subject_hash(&[0x30, 0x03, 0x02, 0x01, 0x00]), None);
    }
}
