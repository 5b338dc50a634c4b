//! The stores of a container → what is mounted over which of them.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use rustix::fs::{FileType, Stat};

use super::stores::{STANDARD_BUNDLE, STANDARD_DIRECTORY, Store, StoreKind, Stores, c_string};
use super::view::{Found, Mounted, View};
use super::{StoreReport, Uncovered};
use crate::trust::bundle::{self, Anchors, BUNDLE_MAX_BYTES, openssl_subject_hash};
use crate::trust::keystore;

/// Everything that is mounted in one container.
pub(super) struct Plan {
    pub(super) items: Vec<Item>,
    /// What there is, and what cannot be covered.
    pub(super) stores: Vec<StoreReport>,
    pub(super) is_complete: bool,
}

/// One mount.
pub(super) struct Item {
    /// Where, without any link.
    pub(super) path: PathBuf,
    /// What it covers; absent until an empty directory has been made for it.
    pub(super) covers: Option<Stat>,
    pub(super) content: Node,
}

/// A file, link or directory that is mounted.
pub(super) struct Node {
    pub(super) mode: u32,
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) content: Content,
}

pub(super) enum Content {
    File(Vec<u8>),
    Link(CString),
    Directory(Vec<(CString, Node)>),
}

impl Plan {
    /// Reads the stores where nothing of ours covers them.
    pub(super) fn new(
        view: &View<'_>,
        mounts: &[Mounted],
        stores: &Stores,
        anchors: &Anchors,
    ) -> Self {
        let planner = Planner { view, mounts, anchors, left: Cell::new(READ_MAX_BYTES) };
        let mut reports = Vec::new();
        let mut files = HashMap::new();
        for store in &stores.list {
            if let Some(result) = planner.file(store) {
                let result = result.map(|bytes| drop(files.insert(&*store.found.path, bytes)));
                reports.push(StoreReport::new(store, result));
            }
        }
        // One that cannot be read is none.
        let lacks_bundle = !stores.list.iter().any(|store| {
            store.kind == StoreKind::Bundle
                && files.contains_key(&*store.found.path)
                && is_standard(view, &store.found)
        });
        let mut items = planner.directories(stores, &files, lacks_bundle, &mut reports);
        for store in &stores.list {
            let path = &*store.found.path;
            let is_below = items.iter().any(|item: &Item| path.starts_with(&item.path));
            if !is_below && let Some(bytes) = files.remove(path) {
                items.push(Item::over(&store.found, Content::File(bytes)));
            }
        }
        if lacks_bundle && !items.iter().any(|item| item.path == Path::new(STANDARD_DIRECTORY)) {
            items.push(planner.new_directory());
            reports.push(StoreReport::covered(STANDARD_DIRECTORY, StoreKind::Directory));
        }
        Self { items, stores: reports, is_complete: stores.is_complete }
    }

    /// What tells this plan from every other.
    pub(super) fn digest(&self) -> String {
        let mut context = Context::new(&SHA256);
        for item in &self.items {
            update(&mut context, item.path.as_os_str().as_bytes());
            item.content.update(&mut context);
        }
        let digest = context.finish();
        digest.as_ref().iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Whether this is what programs find that know only their system's one bundle.
fn is_standard(view: &View<'_>, found: &Found) -> bool {
    bundle::SYSTEM_BUNDLE_PATHS
        .iter()
        .any(|path| view.find(Path::new(path)).is_ok_and(|other| found.is(&other.stat)))
}

struct Planner<'a> {
    view: &'a View<'a>,
    mounts: &'a [Mounted],
    anchors: &'a Anchors,
    /// How many bytes of all stores together may still be read.
    left: Cell<usize>,
}

impl Planner<'_> {
    /// The new content of a store that is one file.
    fn file(&self, store: &Store) -> Option<Result<Vec<u8>, Uncovered>> {
        let extended = |content: Vec<u8>| match store.kind {
            StoreKind::Java => Ok(keystore::extended(&content, self.anchors)?),
            _bundle => Ok(bundle::extended(&content, self.anchors).into_bytes()),
        };
        match store.kind {
            StoreKind::Bundle | StoreKind::Java => {
                Some(self.read(&store.found, BUNDLE_MAX_BYTES).and_then(extended))
            }
            StoreKind::Directory | StoreKind::Anchors => None,
        }
    }

    fn read(&self, found: &Found, limit: usize) -> Result<Vec<u8>, Uncovered> {
        let mount = found.mount().map_err(Uncovered::unreadable)?;
        let mount = self.mounts.iter().find(|mounted| mounted.id == mount);
        // What the kernel writes there is for its own eyes, and reading may wait for ever.
        if mount.is_none_or(|mounted| NO_FILES.contains(&mounted.kind.as_str())) {
            return Err(Uncovered::NoFileSystem);
        }
        let content = self.view.read(found, limit.min(self.left.get()))?;
        self.left.set(self.left.get().saturating_sub(content.len()));
        Ok(content)
    }

    /// Mirrors the stores that are directories, the outer ones first: what is below one is mounted with it.
    fn directories(
        &self,
        stores: &Stores,
        files: &HashMap<&Path, Vec<u8>>,
        lacks_bundle: bool,
        reports: &mut Vec<StoreReport>,
    ) -> Vec<Item> {
        let is_directory =
            |store: &&Store| matches!(store.kind, StoreKind::Directory | StoreKind::Anchors);
        let mut directories: Vec<&Store> = stores.list.iter().filter(is_directory).collect();
        directories.sort_by(|one, other| one.found.path.cmp(&other.found.path));
        let mut items: Vec<Item> = Vec::new();
        for store in &directories {
            if items.iter().any(|item| store.found.path.starts_with(&item.path)) {
                reports.push(StoreReport::new(store, Ok(())));
                continue;
            }
            let mut mirror = Mirror {
                planner: self,
                files,
                stores: &directories,
                lacks_bundle,
                entries: MIRROR_MAX_ENTRIES,
                bytes: MIRROR_MAX_BYTES,
            };
            let result = mirror.directory(&store.found, MIRROR_MAX_DEPTH);
            let result = result.map(|content| items.push(Item::over(&store.found, content)));
            reports.push(StoreReport::new(store, result));
        }
        items
    }

    /// For an image that has neither a bundle nor a place for one.
    fn new_directory(&self) -> Item {
        let mut entries = Vec::new();
        self.add_anchors(StoreKind::Directory, &mut entries);
        self.add_bundle(&mut entries);
        let content = Node::directory(entries);
        Item { path: STANDARD_DIRECTORY.into(), covers: None, content }
    }

    /// The anchors, by the names under which they are looked for.
    fn add_anchors(&self, kind: StoreKind, entries: &mut Vec<(CString, Node)>) {
        for (number, anchor) in self.anchors.iter().enumerate() {
            let is_free = |name: &CString, entries: &[(CString, Node)]| {
                !entries.iter().any(|(other, _)| other == name)
            };
            let mut names: Box<dyn Iterator<Item = CString>> = match kind {
                StoreKind::Directory => {
                    let Some(hash) = openssl_subject_hash(&anchor.der) else { continue };
                    Box::new((0..HASH_MAX).map(move |next| c_string(&format!("{hash}.{next}"))))
                }
                _anchors => Box::new(std::iter::once(c_string(&format!("tollgate-{number}.pem")))),
            };
            if let Some(name) = names.find(|name| is_free(name, entries)) {
                entries.push((name, Node::file(anchor.pem.clone().into_bytes())));
            }
        }
    }

    /// The bundle that is missing: every certificate that stands beside it, and the anchors.
    fn add_bundle(&self, entries: &mut Vec<(CString, Node)>) {
        let mut content = Vec::new();
        for (_name, node) in &*entries {
            if let Content::File(bytes) = &node.content {
                content.extend_from_slice(bytes);
                content.push(b'\n');
            }
        }
        let text = bundle::extended(&content, self.anchors);
        let name = STANDARD_BUNDLE.trim_start_matches(STANDARD_DIRECTORY).trim_start_matches('/');
        entries.retain(|(other, _)| other.as_bytes() != name.as_bytes());
        entries.push((c_string(name), Node::file(text.into_bytes())));
    }
}

/// A directory that is copied, with the stores in it extended.
struct Mirror<'a> {
    planner: &'a Planner<'a>,
    files: &'a HashMap<&'a Path, Vec<u8>>,
    stores: &'a [&'a Store],
    lacks_bundle: bool,
    /// How many more may come.
    entries: usize,
    bytes: usize,
}

impl Mirror<'_> {
    fn directory(&mut self, directory: &Found, depth: usize) -> Result<Content, Uncovered> {
        let listed = View::entries(directory, self.entries)?;
        self.entries -= listed.len();
        let mut entries = Vec::new();
        for (name, _kind) in listed {
            // What vanishes meanwhile is not there.
            let Ok(found) = self.planner.view.entry(directory, &name) else { continue };
            if let Some(content) = self.entry(&found, depth)? {
                entries.push((name, Node::like(&found.stat, content)));
            }
        }
        if let Some(store) = self.stores.iter().find(|store| store.found.path == directory.path) {
            self.planner.add_anchors(store.kind, &mut entries);
            if self.lacks_bundle && store.found.path == Path::new(STANDARD_DIRECTORY) {
                self.planner.add_bundle(&mut entries);
            }
        }
        Ok(Content::Directory(entries))
    }

    fn entry(&mut self, found: &Found, depth: usize) -> Result<Option<Content>, Uncovered> {
        Ok(Some(match found.kind() {
            FileType::RegularFile => {
                let content = match self.files.get(&*found.path) {
                    Some(extended) => extended.clone(),
                    None => self.planner.read(found, self.bytes)?,
                };
                self.bytes = self.bytes.checked_sub(content.len()).ok_or(Uncovered::TooLarge)?;
                Content::File(content)
            }
            // Wherever it leads: who opens it there follows it as before.
            FileType::Symlink => {
                Content::Link(View::link_target(found).map_err(Uncovered::unreadable)?)
            }
            FileType::Directory => {
                let depth = depth.checked_sub(1).ok_or(Uncovered::TooLarge)?;
                self.directory(found, depth)?
            }
            _pipe_or_device => return Ok(None),
        }))
    }
}

impl Item {
    fn over(found: &Found, content: Content) -> Self {
        let content = Node::like(&found.stat, content);
        Self { path: found.path.clone(), covers: Some(found.stat), content }
    }
}

impl Node {
    fn file(bytes: Vec<u8>) -> Self {
        Self { mode: 0o644, user: 0, group: 0, content: Content::File(bytes) }
    }

    fn directory(entries: Vec<(CString, Self)>) -> Self {
        Self { mode: 0o755, user: 0, group: 0, content: Content::Directory(entries) }
    }

    /// With the owner and the rights of what it covers, so that nobody reads more than before.
    fn like(stat: &Stat, content: Content) -> Self {
        let mode = stat.st_mode & PERMISSIONS;
        Self { mode, user: stat.st_uid, group: stat.st_gid, content }
    }

    fn update(&self, context: &mut Context) {
        for number in [self.mode, self.user, self.group] {
            context.update(&number.to_be_bytes());
        }
        match &self.content {
            Content::File(bytes) => {
                context.update(b"f");
                update(context, bytes);
            }
            Content::Link(target) => {
                context.update(b"l");
                update(context, target.as_bytes());
            }
            Content::Directory(entries) => {
                context.update(b"d");
                for (name, node) in entries {
                    update(context, name.as_bytes());
                    node.update(context);
                }
                context.update(b".");
            }
        }
    }
}

/// With its length, so that what follows is not taken for a part of it.
fn update(context: &mut Context, bytes: &[u8]) {
    context.update(&bytes.len().to_be_bytes());
    context.update(bytes);
}

const DIGEST_BYTES: usize = 12;
/// Neither set-id nor sticky bits.
const PERMISSIONS: u32 = 0o777;
/// How many certificates with one hash are skipped.
const HASH_MAX: usize = 100;

/// Of all stores of a container together, which are held at once: a container may have any number of large ones. Python's
/// has 0.3 MB, of which an image may have dozens.
const READ_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Debian's has 287 entries.
const MIRROR_MAX_ENTRIES: usize = 8192;
const MIRROR_MAX_BYTES: usize = 32 * 1024 * 1024;
/// Debian's has one directory in it, `java`.
const MIRROR_MAX_DEPTH: usize = 3;

/// File systems whose files are the kernel's words, or somebody's who may never answer.
const NO_FILES: &[&str] = &[
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "bpf",
    "pstore",
    "efivarfs",
    "devpts",
    "devtmpfs",
    "mqueue",
    "configfs",
    "fusectl",
    "binfmt_misc",
    "autofs",
    "selinuxfs",
];

#[cfg(test)]
mod tests;
