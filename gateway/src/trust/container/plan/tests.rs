use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};

use super::super::stores::STORES_MAX;
use super::*;
use crate::terminate::Authority;

/// What is planned for a container whose files `fill` makes; the state of its trust is beside it.
fn planned<T: Send>(
    fill: impl FnOnce(&Path, &str) + Send,
    seen: impl FnOnce(&Plan) -> T + Send,
) -> Option<T> {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "only root mounts, and CI is set");
        println!("SKIPPED: only root mounts");
        return None;
    }
    let state = tempfile::tempdir().unwrap();
    let pem = Authority::open(state.path()).unwrap().trusted_pem();
    let anchors = Anchors::new(&pem).unwrap();
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fill(root, &pem);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open(c"/proc/thread-self", flags, Mode::empty()).unwrap();
        nix::unistd::chroot(root).unwrap();
        std::env::set_current_dir("/").unwrap();
        let view = View::open(proc.as_fd()).unwrap();
        let (mounts, stores) = (view.mounts().unwrap(), Stores::find(&view, &[]));
        seen(&Plan::new(&view, &mounts, &stores, &anchors))
    };
    Some(std::thread::scope(|scope| scope.spawn(inside).join().unwrap()))
}

/// Bundles in so many directories, all of them one file of `bytes`.
fn bundles(root: &Path, count: usize, content: &[u8]) {
    let lib = root.join("usr/lib");
    fs::create_dir_all(&lib).unwrap();
    let one = root.join("one.pem");
    fs::write(&one, content).unwrap();
    for number in 0..count {
        let folder = lib.join(format!("{number}/ssl"));
        fs::create_dir_all(&folder).unwrap();
        fs::hard_link(&one, folder.join("cert.pem")).unwrap();
    }
}

fn bytes_of(node: &Node) -> usize {
    match &node.content {
        Content::File(bytes) => bytes.len(),
        Content::Link(_) => 0,
        Content::Directory(entries) => entries.iter().map(|(_, node)| bytes_of(node)).sum(),
    }
}

#[test]
fn stores_without_end_cost_no_more_memory_than_all_of_them_may() {
    let certificate = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    let pem = certificate.cert.pem();
    let large = pem.repeat(12 * 1024 * 1024 / pem.len()).into_bytes();
    let planned = planned(
        |root, _| bundles(root, 12, &large),
        |plan| {
            let held: usize = plan.items.iter().map(|item| bytes_of(&item.content)).sum();
            let uncovered = plan.stores.iter().filter(|store| store.problem.is_some()).count();
            (held, uncovered)
        },
    );
    let Some((held, uncovered)) = planned else { return };
    assert!(held <= READ_MAX_BYTES + 1024 * 1024, "{held} bytes are held at once");
    assert_eq!(uncovered, 12 - READ_MAX_BYTES / large.len());
}

#[test]
fn of_stores_without_number_only_so_many_are_covered_and_that_is_said() {
    let planned = |count| {
        planned(
            move |root, pem| bundles(root, count, pem.as_bytes()),
            |plan| (plan.stores.len(), plan.is_complete),
        )
    };
    let Some((covered, is_complete)) = planned(20) else { return };
    // The directory that is made where there is none is one more.
    assert_eq!((covered, is_complete), (21, true), "the control");
    assert_eq!(planned(STORES_MAX + 100), Some((STORES_MAX + 1, false)));
}
