//! Java's trust stores: what is read is JKS or PKCS#12 without encryption, what is written is JKS.
//!
//! Every Java reads JKS: 8 by default, and since 9 a store whose type is said to be PKCS#12 may be JKS as well
//! (`keystore.type.compat`). Without a password its integrity is not checked, with one it has to be the usual one.
//! What is protected by another password is left alone: nobody here knows it.

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use x509_parser::asn1_rs::{Any, Class, FromDer as _, Oid, Tag, oid};

use super::bundle::Anchors;

/// Why a store cannot be extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeystoreError {
    /// Another password than the usual one protects it.
    #[error("it is protected by a password of its own")]
    Password,
    /// Its certificates are encrypted.
    #[error("it is an encrypted PKCS#12 store")]
    Encrypted,
    /// Neither JKS nor PKCS#12.
    #[error("it is no trust store that Java reads")]
    Unknown,
}

/// The store with the anchors in it; an empty one where `content` is empty.
pub(super) fn extended(content: &[u8], anchors: &Anchors) -> Result<Vec<u8>, KeystoreError> {
    let (count, mut entries) = entries(content)?;
    let mut total = count;
    for (number, anchor) in anchors.iter().enumerate() {
        if find(&entries, &anchor.der).is_none() {
            push_certificate(&mut entries, &format!("tollgate-{number}"), &anchor.der)?;
            total = total.checked_add(1).ok_or(KeystoreError::Unknown)?;
        }
    }
    let mut store = [MAGIC, VERSION_2, &total.to_be_bytes()].concat();
    store.append(&mut entries);
    let digest = integrity(&store);
    store.extend(digest);
    Ok(store)
}

/// Whether every anchor is in it.
pub(super) fn has(content: &[u8], anchors: &Anchors) -> bool {
    anchors.iter().all(|anchor| find(content, &anchor.der).is_some())
}

/// The entries as JKS writes them, and how many there are.
fn entries(content: &[u8]) -> Result<(u32, Vec<u8>), KeystoreError> {
    if content.is_empty() {
        return Ok((0, Vec::new()));
    }
    let Some(body) = content.strip_prefix(MAGIC) else { return from_pkcs12(content) };
    let split = content.len().checked_sub(DIGEST_BYTES).ok_or(KeystoreError::Unknown)?;
    let (signed, digest) = content.split_at_checked(split).ok_or(KeystoreError::Unknown)?;
    let body = body.strip_prefix(VERSION_2).ok_or(KeystoreError::Unknown)?;
    let (count, _rest) = body.split_first_chunk::<4>().ok_or(KeystoreError::Unknown)?;
    if integrity(signed) != digest {
        return Err(KeystoreError::Password);
    }
    // Whatever kinds of entries they are: their number and their bytes stay.
    let entries = signed.get(HEAD_BYTES..).ok_or(KeystoreError::Unknown)?;
    Ok((u32::from_be_bytes(*count), entries.to_vec()))
}

fn push_certificate(entries: &mut Vec<u8>, alias: &str, der: &[u8]) -> Result<(), KeystoreError> {
    let length = |length: usize| u32::try_from(length).map_err(|_huge| KeystoreError::Unknown);
    let name_length = u16::try_from(alias.len()).map_err(|_huge| KeystoreError::Unknown)?;
    entries.extend(TRUSTED_CERTIFICATE);
    entries.extend(name_length.to_be_bytes());
    entries.extend(alias.as_bytes());
    // The time of the entry, which nobody reads.
    entries.extend([0; 8]);
    entries.extend(X509_TYPE);
    entries.extend(length(der.len())?.to_be_bytes());
    entries.extend(der);
    Ok(())
}

/// JKS's own construction: the password in UTF-16, a phrase, the data.
fn integrity(data: &[u8]) -> Vec<u8> {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    for unit in PASSWORD.encode_utf16() {
        context.update(&unit.to_be_bytes());
    }
    context.update(b"Mighty Aphrodite");
    context.update(data);
    context.finish().as_ref().to_vec()
}

/// RFC 7292: the certificates of every safe that is not encrypted.
fn from_pkcs12(content: &[u8]) -> Result<(u32, Vec<u8>), KeystoreError> {
    let mut found = Vec::new();
    let mut count: u32 = 0;
    let pfx = sequence(content).ok_or(KeystoreError::Unknown)?;
    let safes = pfx.get(1).and_then(|info| data(info.data)).ok_or(KeystoreError::Unknown)?;
    for safe in sequence(&safes).ok_or(KeystoreError::Unknown)? {
        let bags = data(safe.data).ok_or(KeystoreError::Encrypted)?;
        for bag in sequence(&bags).ok_or(KeystoreError::Unknown)? {
            let der = certificate(bag.data).ok_or(KeystoreError::Unknown)?;
            push_certificate(&mut found, &format!("certificate-{count}"), &der)?;
            count = count.checked_add(1).ok_or(KeystoreError::Unknown)?;
        }
    }
    Ok((count, found))
}

/// The members of a sequence.
fn sequence(der: &[u8]) -> Option<Vec<Any<'_>>> {
    let (_rest, sequence) = Any::from_der(der).ok()?;
    (sequence.tag() == Tag::Sequence).then(|| members(sequence.data))?
}

fn members(mut der: &[u8]) -> Option<Vec<Any<'_>>> {
    let mut members = Vec::new();
    while !der.is_empty() {
        let (rest, member) = Any::from_der(der).ok()?;
        members.push(member);
        der = rest;
    }
    Some(members)
}

/// The content of a ContentInfo whose type is `data`.
fn data(content_info: &[u8]) -> Option<Vec<u8>> {
    let members = members(content_info)?;
    let [kind, content] = members.as_slice() else { return None };
    is(kind, &OID_DATA).then_some(())?;
    octets(content)
}

/// The certificate of a SafeBag: type, `[0]` with type and `[0]` with the octets, attributes.
fn certificate(bag: &[u8]) -> Option<Vec<u8>> {
    let bag = members(bag)?;
    let [kind, content, ..] = bag.as_slice() else { return None };
    is(kind, &OID_CERTIFICATE_BAG).then_some(())?;
    let inner = sequence(content.data)?;
    let [kind, value] = inner.as_slice() else { return None };
    is(kind, &OID_X509_CERTIFICATE).then_some(())?;
    octets(value)
}

/// An octet string that is tagged `[0]` explicitly.
fn octets(tagged: &Any<'_>) -> Option<Vec<u8>> {
    let is_zero = tagged.class() == Class::ContextSpecific && tagged.tag().0 == 0;
    let (_rest, octets) = Any::from_der(is_zero.then_some(tagged.data)?).ok()?;
    (octets.tag() == Tag::OctetString).then(|| octets.data.to_vec())
}

fn is(any: &Any<'_>, oid: &Oid<'_>) -> bool {
    any.tag() == Tag::Oid && any.data == oid.as_bytes()
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|window| window == pattern)
}

const MAGIC: &[u8] = &[0xfe, 0xed, 0xfe, 0xed];
const VERSION_2: &[u8] = &[0, 0, 0, 2];
/// Magic, version, number of entries.
const HEAD_BYTES: usize = 12;
const DIGEST_BYTES: usize = 20;
const TRUSTED_CERTIFICATE: [u8; 4] = [0, 0, 0, 2];
/// With its length before it.
const X509_TYPE: &[u8] = b"\0\x05X.509";
/// Of every `cacerts` that Java or a distribution ships.
const PASSWORD: &str = "changeit";

const OID_DATA: Oid<'static> = oid!(1.2.840.113549.1.7.1);
const OID_CERTIFICATE_BAG: Oid<'static> = oid!(1.2.840.113549.1.12.10.1.3);
const OID_X509_CERTIFICATE: Oid<'static> = oid!(1.2.840.113549.1.9.22.1);

#[cfg(test)]
mod tests;
