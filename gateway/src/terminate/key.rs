//! ECDSA P-256 keys and their PEM form.
//!
//! Key material stays inside the crypto library, which wipes it; what leaves it, for a file or for the TLS
//! library, is wiped when dropped. Nothing here implements `Debug`.

use aws_lc_rs::error::{KeyRejected, Unspecified};
use aws_lc_rs::pkcs8::Document;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::{Zeroize as _, Zeroizing};

/// A P-256 key that can sign certificates.
pub(super) struct EcKey {
    pair: EcdsaKeyPair,
}

/// Why a key file is unusable. It says nothing of the content.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not one PEM section `PRIVATE KEY`.
    #[error("it holds no PEM section `PRIVATE KEY` (PKCS#8)")]
    NotPem,
    /// Another kind of key, or a damaged one.
    #[error("it is not an ECDSA P-256 key")]
    Rejected(#[source] KeyRejected),
}

impl EcKey {
    /// A new random key.
    pub(super) fn generate() -> Result<Self, Unspecified> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map(|pair| Self { pair })
    }

    /// The key in a PEM text.
    pub(super) fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        let Ok(mut pkcs8) = PrivatePkcs8KeyDer::from_pem_slice(text) else {
            return Err(KeyError::NotPem);
        };
        let parsed =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.secret_pkcs8_der());
        pkcs8.zeroize();
        parsed.map(|pair| Self { pair }).map_err(KeyError::Rejected)
    }

    /// PKCS#8 in DER; wiped when dropped.
    pub(super) fn to_pkcs8(&self) -> Result<Document, Unspecified> {
        self.pair.to_pkcs8v1()
    }
}

impl PublicKeyData for EcKey {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for EcKey {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self.pair.sign(&SystemRandom::new(), msg) {
            Ok(signature) => Ok(signature.as_ref().to_vec()),
            Err(Unspecified) => Err(rcgen::Error::RingUnspecified),
        }
    }
}

/// Writes a PEM section (RFC 7468) into a buffer that is wiped when dropped.
pub(super) fn pem_section(label: &str, der: &[u8]) -> Zeroizing<String> {
    let lines = der.len().div_ceil(PEM_LINE_DER_BYTES);
    // Enough from the start: a buffer that grows leaves unwiped copies behind.
    let capacity = 2 * (label.len() + 20) + lines * (PEM_LINE_CHARACTERS + 1);
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    for part in ["-----BEGIN ", label, "-----\n"] {
        text.push_str(part);
    }
    for line in der.chunks(PEM_LINE_DER_BYTES) {
        for group in line.chunks(3) {
            push_base64_group(&mut text, group);
        }
        text.push('\n');
    }
    for part in ["-----END ", label, "-----\n"] {
        text.push_str(part);
    }
    text
}

fn push_base64_group(text: &mut String, group: &[u8]) {
    let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
    let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
    for (position, shift) in [18_u32, 12, 6, 0].into_iter().enumerate() {
        // One byte makes two digits, two make three, three make four.
        let digit = if position <= group.len() { base64_digit(bits >> shift & 0x3f) } else { '=' };
        text.push(digit);
    }
}

fn base64_digit(value: u32) -> char {
    let digit = match value {
        0..=25 => u32::from(b'A') + value,
        26..=51 => u32::from(b'a') + value - 26,
        52..=61 => u32::from(b'0') + value - 52,
        62 => u32::from(b'+'),
        _six_bits_at_most => u32::from(b'/'),
    };
    char::from_u32(digit).unwrap_or('=')
}

/// RFC 7468 section 2: 64 characters a line.
const PEM_LINE_CHARACTERS: usize = 64;
const PEM_LINE_DER_BYTES: usize = PEM_LINE_CHARACTERS / 4 * 3;

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;

    use super::*;

    #[test]
    fn a_pem_section_reads_back_whatever_its_length() {
        for length in 0_u8..=200 {
            let der: Vec<u8> =
                (0..length).map(|index| index.wrapping_mul(37).wrapping_add(length)).collect();
            let text = pem_section("CERTIFICATE", &der);
            assert!(text.lines().all(|line| line.len() <= PEM_LINE_CHARACTERS), "{length}");
            let read = CertificateDer::from_pem_slice(text.as_bytes()).expect("PEM");
            assert_eq!(&read[..], &der[..], "{length}");
        }
    }

    #[test]
    fn a_key_survives_its_file_form() {
        let key = EcKey::generate().expect("key");
        let text = pem_section("PRIVATE KEY", key.to_pkcs8().expect("PKCS#8").as_ref());
        let again = EcKey::from_pem(text.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again.der_bytes(), key.der_bytes());
    }

    #[test]
    fn what_is_no_p256_key_is_refused() {
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("key");
        assert!(matches!(EcKey::from_pem(b"no PEM"), Err(KeyError::NotPem)));
        assert!(matches!(
            EcKey::from_pem(p384.serialize_pem().as_bytes()),
            Err(KeyError::Rejected(_))
        ));
        let damaged = pem_section("PRIVATE KEY", &[0x30, 0x03, 0x02, 0x01, 0x00]);
        assert!(matches!(EcKey::from_pem(damaged.as_bytes()), Err(KeyError::Rejected(_))));
    }
}
