//! `&Permit` → an authorized request: injects for exactly the permitted destination.
//!
//! Values live in the [`Vault`] only. They have no `Debug`, no `Display` and no copies; what leaves is a header
//! value that is marked as sensitive.

mod secret;
mod source;

pub(crate) use source::SECRET_BYTES_MAX;
pub use source::SourceError;

use std::collections::HashMap;
use std::ffi::OsString;

use http::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

use crate::policy::{CredentialName, Injection, Permit, Policy};
use secret::Secret;

/// The values of all credentials of one policy.
pub struct Vault {
    credentials: HashMap<CredentialName, Credential>,
}

struct Credential {
    secret: Secret,
    header: HeaderName,
    format: String,
}

/// A credential that a permit names cannot be injected.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The permit was made by another policy than the vault.
    #[error("the vault has no credential `{}`", credential.as_str())]
    Unknown {
        /// Its name.
        credential: CredentialName,
    },
    /// The value does not make a field value.
    #[error("the value of the credential `{}` is no header value", credential.as_str())]
    Malformed {
        /// Its name.
        credential: CredentialName,
    },
}

impl Vault {
    /// Reads the values of all credentials that `policy` has.
    ///
    /// # Errors
    /// One error for each credential that cannot be read or whose value cannot be injected.
    pub fn load(
        policy: &Policy,
        read_env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Vec<SourceError>> {
        let mut credentials = HashMap::new();
        let mut errors = Vec::new();
        for spec in policy.credentials() {
            let Injection::Header { name: header, format } = &spec.inject;
            let read = source::read(&spec.name, &spec.source, read_env).and_then(|secret| {
                let credential =
                    Credential { secret, header: header.clone(), format: format.clone() };
                match credential.header_value() {
                    Some(_value) => Ok(credential),
                    None => Err(SourceError::NotInjectable { credential: spec.name.clone() }),
                }
            });
            match read {
                Ok(credential) => {
                    credentials.insert(spec.name.clone(), credential);
                }
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(Self { credentials }) } else { Err(errors) }
    }

    /// Sets the fields of the credentials that `permit` names, whatever the agent had there, and says which
    /// they are.
    ///
    /// # Errors
    /// When one of them is not in this vault: the request must not go on without it.
    pub fn authorize(
        &self,
        permit: &Permit,
        headers: &mut HeaderMap,
    ) -> Result<Vec<CredentialName>, CredentialError> {
        for name in permit.credentials() {
            let credential = self
                .credentials
                .get(name)
                .ok_or_else(|| CredentialError::Unknown { credential: name.clone() })?;
            let value = credential
                .header_value()
                .ok_or_else(|| CredentialError::Malformed { credential: name.clone() })?;
            // `insert` removes every value that the agent sent.
            headers.insert(credential.header.clone(), value);
        }
        Ok(permit.credentials().to_vec())
    }
}

impl CredentialError {
    /// The credential that is not available.
    #[must_use]
    pub fn credential(&self) -> &CredentialName {
        match self {
            Self::Unknown { credential } | Self::Malformed { credential } => credential,
        }
    }
}

impl Credential {
    fn header_value(&self) -> Option<HeaderValue> {
        let mut bytes = Zeroizing::new(Vec::new());
        let (before, after) = self.format.split_once(HOLE)?;
        bytes.extend_from_slice(before.as_bytes());
        bytes.extend_from_slice(self.secret.expose());
        bytes.extend_from_slice(after.as_bytes());
        let mut value = HeaderValue::from_bytes(&bytes).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Where the value goes in a format.
const HOLE: &str = "{value}";

#[cfg(test)]
mod tests;
