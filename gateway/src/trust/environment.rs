//! Which variables make which clients trust the CA.

use std::path::{Path, PathBuf};

/// The environment of a workload. `bundle` holds the system's roots and the CA, `ca` the CA alone; both paths are
/// those inside the workload.
///
/// A variable that *replaces* a client's roots names the bundle, one that *adds* to them names the CA.
#[must_use]
pub fn variables(bundle: &Path, ca: &Path) -> Vec<(&'static str, PathBuf)> {
    let replacing = REPLACING.iter().map(|name| (*name, bundle.to_path_buf()));
    let adding = ADDING.iter().map(|name| (*name, ca.to_path_buf()));
    let switches = SWITCHES.iter().map(|(name, value)| (*name, PathBuf::from(value)));
    replacing.chain(adding).chain(switches).collect()
}

/// The variables whose value is a file that a client reads roots from.
pub(super) fn names_of_files() -> Vec<&'static str> {
    REPLACING.into_iter().chain(ADDING).collect()
}

/// The variable that makes Node.js read a file besides its own roots.
pub(super) const NODE_FILE: &str = "NODE_EXTRA_CA_CERTS";
/// The variable and its value that make it read the system's, where it knows it.
pub(super) const NODE_SYSTEM: (&str, &str) = ("NODE_USE_SYSTEM_CA", "1");
/// npm's own.
pub(super) const NPM_FILE: &str = "npm_config_cafile";
/// The options that do.
pub(super) const NODE_OPTIONS: [&str; 2] = ["--use-system-ca", "--use-openssl-ca"];

const REPLACING: [&str; 15] = [
    // OpenSSL, and with it Ruby, PHP, Perl, Python's standard library, httpx; also Go, rustls-native-certs, uv.
    "SSL_CERT_FILE",
    // curl, and libcurl where the program asks for it.
    "CURL_CA_BUNDLE",
    // requests; its bundled roots ignore OpenSSL's variable.
    "REQUESTS_CA_BUNDLE",
    // httplib2 (older Google clients).
    "HTTPLIB2_CA_CERTS",
    // pip.
    "PIP_CERT",
    // git, which hands it to libcurl.
    "GIT_SSL_CAINFO",
    // cargo.
    "CARGO_HTTP_CAINFO",
    // The AWS command line and SDKs, botocore.
    "AWS_CA_BUNDLE",
    // The Google Cloud command line.
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    // gRPC's own roots (C core: Python, Ruby, PHP, C++).
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    NPM_FILE,
    // Composer.
    "COMPOSER_CAFILE",
    // Bundler.
    "BUNDLE_SSL_CA_CERT",
    // Perl's LWP.
    "PERL_LWP_SSL_CA_FILE",
    // Programs from Nix.
    "NIX_SSL_CERT_FILE",
];

const ADDING: [&str; 2] = [
    // Node.js and Bun.
    "NODE_EXTRA_CA_CERTS",
    // Deno.
    "DENO_CERT",
];

const SWITCHES: [(&str, &str); 1] = [
    // Newer Node.js: also trust what OpenSSL's variables and the distribution's bundle hold.
    NODE_SYSTEM,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn clients_that_replace_their_roots_get_the_bundle_and_others_the_ca() {
        let variables = variables(Path::new("/run/bundle.pem"), Path::new("/run/ca.pem"));
        let value = |name: &str| {
            let found = variables.iter().find(|(candidate, _)| *candidate == name);
            found.map(|(_, path)| path.to_str().expect("text"))
        };
        for name in [
            "SSL_CERT_FILE",
            "CURL_CA_BUNDLE",
            "REQUESTS_CA_BUNDLE",
            "GIT_SSL_CAINFO",
            "PIP_CERT",
            "AWS_CA_BUNDLE",
            "CARGO_HTTP_CAINFO",
        ] {
            assert_eq!(value(name), Some("/run/bundle.pem"), "{name}");
        }
        for name in ["NODE_EXTRA_CA_CERTS", "DENO_CERT"] {
            assert_eq!(value(name), Some("/run/ca.pem"), "{name}");
        }
        assert_eq!(value("NODE_USE_SYSTEM_CA"), Some("1"));
    }

    #[test]
    fn no_variable_is_set_twice() {
        let variables = variables(Path::new("/b"), Path::new("/c"));
        let names: HashSet<_> = variables.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), variables.len());
    }
}
