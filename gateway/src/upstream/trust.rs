//! Which certificates prove an upstream's name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::Dialect;

/// The roots of trust cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// A file of `upstream.ca_files` cannot be read or is no PEM.
    #[error("cannot read the roots in {} (upstream.ca_files)", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// A file of `upstream.ca_files` has no certificate in it.
    #[error("{} (upstream.ca_files) has no certificate in it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A certificate of `upstream.ca_files` is malformed.
    #[error("{} (upstream.ca_files) has a certificate that is no root", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    /// The TLS library does not accept its own defaults.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// TLS towards upstreams: the same roots, with and without HTTP/2.
#[derive(Clone)]
pub(super) struct Tls {
    negotiated: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl Tls {
    pub(super) fn load(ca_files: &[PathBuf]) -> Result<Self, RootsError> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "some of the system's roots cannot be read");
        }
        roots.add_parsable_certificates(system.certs);
        for path in ca_files {
            add_file(&mut roots, path)?;
        }
        let roots = Arc::new(roots);
        Ok(Self {
            negotiated: client_config(&roots, &[b"h2", b"http/1.1"])?,
            http1: client_config(&roots, &[b"http/1.1"])?,
        })
    }

    pub(super) fn config(&self, dialect: Dialect) -> Arc<ClientConfig> {
        match dialect {
            Dialect::Negotiated | Dialect::Http2 => Arc::clone(&self.negotiated),
            Dialect::Http1 => Arc::clone(&self.http1),
        }
    }
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), RootsError> {
    let unreadable = |source| RootsError::Unreadable { path: path.to_owned(), source };
    let mut count = 0;
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        roots
            .add(certificate.map_err(unreadable)?)
            .map_err(|source| RootsError::Malformed { path: path.to_owned(), source })?;
        count += 1;
    }
    if count == 0 { Err(RootsError::Empty { path: path.to_owned() }) } else { Ok(()) }
}

fn client_config(
    roots: &Arc<RootCertStore>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, RootsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(RootsError::Tls)?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}
