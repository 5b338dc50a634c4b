//! How a container's Node.js was built: where it looks for roots is compiled in.

use std::path::Path;

use regex::bytes::Regex;
use rustix::fs::FileType;

use super::view::{Found, View};

/// What can be seen of it from outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::trust) struct NodeBuild {
    /// The system's roots are what it reads by itself (`--openssl-use-def-ca-store`; Debian and Fedora build it so).
    pub(in crate::trust) reads_system: bool,
    /// It knows the variable that makes it read them (`NODE_USE_SYSTEM_CA`, since 22.19 and 24.6).
    pub(in crate::trust) knows_variable: bool,
}

/// Looks into the program and, where it is one, its library. What cannot be read has nothing in it.
pub(super) fn build_of(view: &View<'_>, program: &Found) -> NodeBuild {
    let Ok(pattern) = Regex::new(PATTERN) else { return NodeBuild::default() };
    let libraries = LIBRARY_FOLDERS.iter().flat_map(|folder| libraries_in(view, folder));
    let mut build = NodeBuild::default();
    let mut look = |file: &Found| {
        for found in view.search(file, &pattern, PROGRAM_MAX_BYTES).unwrap_or_default() {
            build.knows_variable |= found == VARIABLE;
            build.reads_system |= found != VARIABLE;
        }
    };
    look(program);
    // The program itself is large where it has no library.
    if program.stat.st_size < LIBRARY_MIN_BYTES {
        libraries.for_each(|library| look(&library));
    }
    build
}

/// Below a folder, and below those of architectures in it.
fn libraries_in(view: &View<'_>, folder: &str) -> Vec<Found> {
    let mut found = Vec::new();
    let mut folders: Vec<Found> = view.find(Path::new(folder)).into_iter().collect();
    while let Some(folder) = folders.pop() {
        for (name, _kind) in View::entries(&folder, FOLDER_MAX_ENTRIES).unwrap_or_default() {
            let text = name.to_string_lossy();
            if text.starts_with("libnode.so") || text.ends_with("-linux-gnu") {
                match view.entry(&folder, &name) {
                    Ok(entry) if entry.kind() == FileType::Directory => folders.push(entry),
                    Ok(entry) => found.push(entry),
                    Err(_gone) => {}
                }
            }
        }
    }
    found
}

/// The first stands so in the JSON that `process.config` is made of.
const PATTERN: &str = "NODE_(?:OPENSSL_CERT_STORE\"|USE_SYSTEM_CA)";
const VARIABLE: &[u8] = b"NODE_USE_SYSTEM_CA";
const LIBRARY_FOLDERS: [&str; 3] = ["/usr/lib", "/usr/lib64", "/usr/local/lib"];
const FOLDER_MAX_ENTRIES: usize = 8192;
const LIBRARY_MIN_BYTES: i64 = 10_000_000;
/// The official one has about 120 MB.
const PROGRAM_MAX_BYTES: u64 = 512 * 1024 * 1024;
