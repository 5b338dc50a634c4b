//! What several test targets need. Include it as `#[cfg(test)] mod common;`.
#![expect(dead_code, reason = "each test target uses a part of it")]

pub(crate) mod names;
pub(crate) mod origin;
pub(crate) mod place;
pub(crate) mod running;
pub(crate) mod waivers;
pub(crate) mod wire;
pub(crate) mod world;

use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

/// Keeps the expectation above true in a target that uses all the rest.
struct NeverUsed;

/// How long anything that must happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; panics with `what` when it does not in [`PATIENCE`].
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Waits until `look` finds something; panics with `what` when it does not in [`PATIENCE`].
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in {} s: {what}", PATIENCE.as_secs());
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Whether worlds can be made and `tollgate run` can govern here. Says so when not, and fails where somebody relies on
/// the test (`CI` is set).
pub(crate) fn is_privileged() -> bool {
    let may_unshare = || std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_ok()).join();
    let missing = if !nix::unistd::geteuid().is_root() {
        "root"
    } else if !may_unshare().is_ok_and(|may| may) {
        "the right to make namespaces"
    } else if !gateway::capture::object_is_built_in() {
        "the kernel programs (cargo xtask ebpf)"
    } else {
        return true;
    };
    assert!(std::env::var_os("CI").is_none(), "this test needs {missing}, and CI is set");
    eprintln!("SKIPPED: this test needs {missing}");
    false
}

/// Whether `program` is there. Says so when it is not, and fails where somebody relies on the test.
pub(crate) fn has_program(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "this test needs {program}, and CI is set");
    eprintln!("SKIPPED: this test needs {program}");
    false
}
