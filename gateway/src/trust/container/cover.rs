//! A plan → mounts in the container: a file system without a path, read-only, of which every file is mounted where
//! it belongs.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags,
};

use super::plan::{Content, Item, Node, Plan};
use super::view::{Mounted, View};
use super::{StoreReport, Uncovered};

/// The mounts of a plan, not anywhere yet.
pub(super) struct Prepared {
    trees: Vec<OwnedFd>,
    source: String,
}

/// Writes the plan into a new file system. The calling thread has a mount namespace that nobody else sees, whose root
/// this covers.
pub(super) fn prepare(plan: &Plan) -> io::Result<Prepared> {
    let source = format!("{SOURCE}{}", plan.digest());
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"source", &source)?;
    rustix::mount::fsconfig_set_string(&context, c"size", SIZE)?;
    rustix::mount::fsconfig_set_string(&context, c"mode", c"0755")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let system = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    for (number, item) in plan.items.iter().enumerate() {
        write(system.as_fd(), number.to_string(), &item.content)?;
    }
    // Not the mounts alone: whoever gets a mount of it that may be written finds nothing that can be.
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let picked = rustix::mount::fspick(&system, c"", flags)?;
    rustix::mount::fsconfig_set_flag(&picked, c"ro")?;
    rustix::mount::fsconfig_reconfigure(&picked)?;
    // Before Linux 6.15, parts are taken only of a mount that is somewhere.
    let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&system, c"", CWD, c"/", from)?;
    let part = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let trees = (0..plan.items.len())
        .map(|number| rustix::mount::open_tree(&system, number.to_string(), part))
        .collect::<Result<_, _>>()?;
    Ok(Prepared { trees, source })
}

/// Mounts them in the namespace that the calling thread is in now; whether anything changed. What stands there already
/// stays, what is of an earlier plan goes.
pub(super) fn cover(
    view: &View<'_>,
    plan: &Plan,
    prepared: &Prepared,
    reports: &mut [StoreReport],
) -> io::Result<bool> {
    let mounts = view.mounts()?;
    let (current, old): (Vec<&Mounted>, Vec<&Mounted>) = mounts
        .iter()
        .filter(|mounted| is_ours(mounted))
        .partition(|mounted| mounted.source == prepared.source);
    let mut is_changed = false;
    // The last one first: it may stand on an earlier one.
    for mounted in old.into_iter().rev() {
        is_changed |= uncover(view, mounted)?;
    }
    for (item, tree) in plan.items.iter().zip(&prepared.trees) {
        if current.iter().any(|mounted| mounted.path == item.path) {
            continue;
        }
        match cover_one(view, &mounts, item, tree) {
            Ok(()) => is_changed = true,
            Err(why) => say(reports, &item.path, &why),
        }
    }
    Ok(is_changed)
}

/// Whether it is a mount of this module; nobody without CAP_SYS_ADMIN makes one that looks like it.
pub(super) fn is_ours(mounted: &Mounted) -> bool {
    mounted.kind == "tmpfs" && mounted.source.starts_with(SOURCE)
}

/// Takes a mount away, if it is still the one that is meant.
pub(super) fn uncover(view: &View<'_>, mounted: &Mounted) -> io::Result<bool> {
    let Ok(found) = view.find_itself(&mounted.path) else { return Ok(false) };
    if found.mount()? != mounted.id {
        return Ok(false);
    }
    view.detach(&found.fd)?;
    Ok(true)
}

fn cover_one(
    view: &View<'_>,
    mounts: &[Mounted],
    item: &Item,
    tree: &OwnedFd,
) -> Result<(), Uncovered> {
    let Ok(target) = view.find_itself(&item.path) else { return Err(Uncovered::Changed) };
    if item.covers.is_none_or(|covers| !target.is(&covers)) {
        return Err(Uncovered::Changed);
    }
    let below = target.mount().map_err(Uncovered::unreadable)?;
    if mounts.iter().any(|mounted| mounted.id == below && mounted.is_shared) {
        return Err(Uncovered::Shared);
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", &target.fd, c"", flags)
        .map_err(|errno| Uncovered::Refused { source: errno.into() })
}

/// What is below the place shares its fate.
pub(super) fn say(reports: &mut [StoreReport], path: &Path, why: &Uncovered) {
    for report in reports.iter_mut().filter(|report| report.path.starts_with(path)) {
        report.problem = Some(why.to_string_chain());
    }
}

fn write(directory: BorrowedFd<'_>, name: impl rustix::path::Arg, node: &Node) -> io::Result<()> {
    let name = name.into_c_str()?;
    let mode = Mode::from_raw_mode(node.mode);
    let owner = (Some(Uid::from_raw(node.user)), Some(Gid::from_raw(node.group)));
    match &node.content {
        Content::File(bytes) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(directory, &*name, flags, Mode::RUSR)?;
            let mut file = File::from(file);
            file.write_all(bytes)?;
            rustix::fs::fchown(&file, owner.0, owner.1)?;
            rustix::fs::fchmod(&file, mode)?;
        }
        Content::Link(target) => rustix::fs::symlinkat(&**target, directory, &*name)?,
        Content::Directory(entries) => {
            rustix::fs::mkdirat(directory, &*name, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let inner = rustix::fs::openat(directory, &*name, flags, Mode::empty())?;
            for (name, node) in entries {
                write(inner.as_fd(), &**name, node)?;
            }
            rustix::fs::fchown(&inner, owner.0, owner.1)?;
            rustix::fs::fchmod(&inner, mode)?;
        }
    }
    Ok(())
}

/// Begins the name by which these mounts are known in mountinfo.
const SOURCE: &str = "tollgate-trust:";
/// Several of the largest mirrors.
const SIZE: &std::ffi::CStr = c"128M";
