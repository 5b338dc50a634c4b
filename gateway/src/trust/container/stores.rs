//! Where clients keep their roots: the places of distributions, what the environment names, and what a search finds.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use serde::Serialize;

use super::view::{Found, View};
use crate::trust::bundle::SYSTEM_BUNDLE_PATHS;

/// How clients read a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// One file of PEM sections.
    Bundle,
    /// A directory in which OpenSSL finds a certificate by the hash of its subject.
    Directory,
    /// A directory that p11-kit reads (GnuTLS and NSS on Fedora, Arch, SUSE).
    Anchors,
    /// A trust store of Java.
    Java,
}

/// One that exists.
pub(super) struct Store {
    pub(super) kind: StoreKind,
    pub(super) found: Found,
}

/// What is there.
pub(super) struct Stores {
    pub(super) list: Vec<Store>,
    /// Whether the search saw everything that it wanted to.
    pub(super) is_complete: bool,
}

impl Stores {
    /// Finds them; `named` are files that the environment of the workload names.
    pub(super) fn find(view: &View<'_>, named: &[PathBuf]) -> Self {
        let mut stores = Self { list: Vec::new(), is_complete: true };
        let places = [
            (StoreKind::Bundle, SYSTEM_BUNDLE_PATHS),
            (StoreKind::Bundle, MORE_BUNDLES),
            (StoreKind::Directory, DIRECTORIES),
            (StoreKind::Anchors, ANCHOR_DIRECTORIES),
            (StoreKind::Java, KEYSTORES),
        ];
        for (kind, paths) in places {
            for path in paths {
                stores.add(view, kind, Path::new(path));
            }
        }
        for path in named {
            stores.add(view, StoreKind::Bundle, path);
        }
        let mut search = Search {
            view,
            stores: &mut stores,
            directories: SEARCH_MAX_DIRECTORIES,
            deadline: Instant::now() + SEARCH_FOR,
        };
        for path in SEARCHED {
            if let Ok(found) = view.find(Path::new(path)) {
                search.walk(&found, SEARCH_MAX_DEPTH);
            }
        }
        stores
    }

    /// Whether there is one of this kind at this place, links followed.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.list.iter().any(|store| store.found.path == path)
    }

    fn add(&mut self, view: &View<'_>, kind: StoreKind, path: &Path) {
        if let Ok(found) = view.find(path) {
            self.add_found(kind, found);
        }
    }

    fn add_found(&mut self, kind: StoreKind, found: Found) {
        let wanted = match kind {
            StoreKind::Bundle | StoreKind::Java => FileType::RegularFile,
            StoreKind::Directory | StoreKind::Anchors => FileType::Directory,
        };
        // Several places are often one.
        if found.kind() != wanted || self.has(&found.path) {
            return;
        }
        // Each is a descriptor, and a container may have any number.
        if self.list.len() == STORES_MAX {
            self.is_complete = false;
        } else {
            self.list.push(Store { kind, found });
        }
    }
}

struct Search<'a> {
    view: &'a View<'a>,
    stores: &'a mut Stores,
    /// How many more are visited.
    directories: usize,
    deadline: Instant,
}

impl Search<'_> {
    /// Never follows a link out of its way: what is behind one is found where it is.
    fn walk(&mut self, directory: &Found, depth: usize) {
        if self.directories == 0 || Instant::now() > self.deadline {
            self.stores.is_complete = false;
            return;
        }
        self.directories -= 1;
        let Ok(entries) = View::entries(directory, SEARCH_MAX_ENTRIES) else { return };
        self.probe(directory);
        if depth == 0 || directory.path.file_name().is_some_and(is_packages) {
            return;
        }
        for (name, kind) in entries {
            let may_be = matches!(kind, FileType::Directory | FileType::Unknown);
            if !may_be || SKIPPED.contains(&name.as_c_str()) {
                continue;
            }
            if let Ok(found) = self.view.entry(directory, &name)
                && found.kind() == FileType::Directory
            {
                self.walk(&found, depth - 1);
            }
        }
    }

    /// The stores that libraries keep in such a directory.
    fn probe(&mut self, directory: &Found) {
        let Some(name) = directory.path.file_name() else { return };
        let known: &[(StoreKind, &str)] = if is_packages(name) {
            IN_PACKAGES
        } else if name == "security" {
            IN_SECURITY
        } else if name == "ssl" {
            IN_SSL
        } else {
            return;
        };
        for (kind, below) in known {
            self.stores.add(self.view, *kind, &directory.path.join(below));
        }
    }
}

fn is_packages(name: &std::ffi::OsStr) -> bool {
    name == "site-packages" || name == "dist-packages"
}

/// The paths at which most programs look first: a workload with none of them gets one.
pub(super) const STANDARD_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Its directory.
pub(super) const STANDARD_DIRECTORY: &str = "/etc/ssl/certs";

const MORE_BUNDLES: &[&str] = &[
    // Go looks there too.
    "/etc/pki/tls/cacert.pem",
    // Nix.
    "/etc/ssl/certs/ca-bundle.crt",
    // OpenSSL and LibreSSL as their authors install them.
    "/usr/local/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
    "/etc/openssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
];

const DIRECTORIES: &[&str] = &[
    "/etc/ssl/certs",
    "/usr/lib/ssl/certs",
    "/etc/pki/tls/certs",
    "/usr/local/ssl/certs",
    "/etc/openssl/certs",
    "/var/lib/ca-certificates/openssl",
];

const ANCHOR_DIRECTORIES: &[&str] = &[
    "/etc/pki/ca-trust/source/anchors",
    "/etc/ca-certificates/trust-source/anchors",
    "/etc/pki/trust/anchors",
];

const KEYSTORES: &[&str] = &[
    "/etc/ssl/certs/java/cacerts",
    "/etc/pki/java/cacerts",
    "/etc/pki/ca-trust/extracted/java/cacerts",
    "/var/lib/ca-certificates/java-cacerts",
];

/// Python's packages that have roots of their own.
const IN_PACKAGES: &[(StoreKind, &str)] = &[
    (StoreKind::Bundle, "certifi/cacert.pem"),
    (StoreKind::Bundle, "pip/_vendor/certifi/cacert.pem"),
    (StoreKind::Bundle, "botocore/cacert.pem"),
    (StoreKind::Bundle, "httplib2/cacerts.txt"),
    (StoreKind::Bundle, "grpc/_cython/_credentials/roots.pem"),
    (StoreKind::Bundle, "stripe/data/ca-certificates.crt"),
];

const IN_SECURITY: &[(StoreKind, &str)] =
    &[(StoreKind::Java, "cacerts"), (StoreKind::Java, "jssecacerts")];

/// Conda's, for instance.
const IN_SSL: &[(StoreKind, &str)] =
    &[(StoreKind::Bundle, "cert.pem"), (StoreKind::Bundle, "cacert.pem")];

/// Where programs and their libraries are installed, by distributions and by people.
const SEARCHED: &[&str] = &[
    "/usr/lib",
    "/usr/lib64",
    "/usr/local",
    "/opt",
    "/root",
    "/home",
    "/app",
    "/srv",
    "/code",
    "/workspace",
    "/venv",
    "/.venv",
    "/nix/var/nix/profiles",
    "/var/lib",
    "/usr/src/app",
];

/// Large, and without roots that anybody reads.
const SKIPPED: &[&CStr] = &[
    c"node_modules",
    c".git",
    c"__pycache__",
    c"doc",
    c"docs",
    c"man",
    c"locale",
    c"include",
    c"share",
    c".cache",
    c"docker",
    c"containers",
    c"proc",
    c"sys",
];

/// `/root/.pyenv/versions/3.11.7/lib/python3.11/site-packages` is six below `/root`.
const SEARCH_MAX_DEPTH: usize = 8;
/// An image with an environment of Python's for each of its tools has some dozens.
pub(super) const STORES_MAX: usize = 512;
const SEARCH_MAX_DIRECTORIES: usize = 20_000;
const SEARCH_MAX_ENTRIES: usize = 10_000;
/// The workload waits for its trust as long as this.
const SEARCH_FOR: Duration = Duration::from_secs(3);

/// A name that must not be taken apart.
pub(super) fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}
