//! Where the values of credentials come from.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::secret::Secret;
use crate::policy::{CredentialName, SourceSpec};

/// A credential's value cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error(
        "credential `{}`: cannot read {}; make the file readable for the gateway, or name another one in `source`",
        credential.as_str(), path.display()
    )]
    File {
        /// The credential.
        credential: CredentialName,
        /// The file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is too large for a secret.
    #[error(
        "credential `{}`: {} has more than {SECRET_BYTES_MAX} bytes; it must hold the secret and nothing else",
        credential.as_str(), path.display()
    )]
    TooLarge {
        /// The credential.
        credential: CredentialName,
        /// The file.
        path: PathBuf,
    },
    /// The variable is not set.
    #[error(
        "credential `{}`: the environment variable {variable} is not set; set it for the gateway, or name another \
         `source`",
        credential.as_str()
    )]
    Variable {
        /// The credential.
        credential: CredentialName,
        /// The variable.
        variable: String,
    },
    /// There is nothing in it.
    #[error("credential `{}`: {place} is empty; put the secret there", credential.as_str())]
    Empty {
        /// The credential.
        credential: CredentialName,
        /// The file or variable.
        place: String,
    },
    /// It makes no header value.
    #[error(
        "credential `{}`: its value cannot stand in a header; it must be one line without control characters",
        credential.as_str()
    )]
    NotInjectable {
        /// The credential.
        credential: CredentialName,
    },
}

/// Reads the value of `credential`.
pub(super) fn read(
    credential: &CredentialName,
    source: &SourceSpec,
    read_env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Secret, SourceError> {
    let (secret, place) = match source {
        SourceSpec::File(path) => {
            (Secret::new(read_file(credential, path)?), path.display().to_string())
        }
        SourceSpec::Env(variable) => {
            let value = read_env(variable).ok_or_else(|| SourceError::Variable {
                credential: credential.clone(),
                variable: variable.clone(),
            })?;
            (Secret::new(value.into_vec()), format!("the environment variable {variable}"))
        }
    };
    if secret.expose().is_empty() {
        return Err(SourceError::Empty { credential: credential.clone(), place });
    }
    Ok(secret)
}

fn read_file(credential: &CredentialName, path: &Path) -> Result<Vec<u8>, SourceError> {
    let failed = |source| SourceError::File {
        credential: credential.clone(),
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // The whole room at once: a vector that grows leaves copies of the secret behind.
    let mut value = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1));
    file.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut value).map_err(failed)?;
    if value.len() > SECRET_BYTES_MAX {
        return Err(SourceError::TooLarge {
            credential: credential.clone(),
            path: path.to_owned(),
        });
    }
    Ok(std::mem::take(&mut *value))
}

/// Longer than tokens are, shorter than what servers take as a header.
pub(crate) const SECRET_BYTES_MAX: usize = 16 * 1024;
