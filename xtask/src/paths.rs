//! Where things are, relative to the checkout. Outside of it are only system packages and temporary folders.

use std::path::{Path, PathBuf};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

/// The workspace's target folder. Fixed, so that the stable path of the kernel object is one.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Logs of long steps whose output is only of interest when they fail.
pub(crate) fn logs() -> PathBuf {
    target().join("xtask")
}

/// `--root` of the tools that `setup` builds.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// The kernel object, where `gateway/build.rs` looks for it.
pub(crate) fn kernel_object() -> PathBuf {
    target().join("bpf/tollgate-bpf.o")
}

/// The first executable file called `name` in the checkout's tools, on PATH, or where administration tools are.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let own = tools().join("bin").join(name);
    if is_executable(&own) { Some(own) } else { find_on_path(name) }
}

/// The same without the checkout's tools.
pub(crate) fn find_on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path)
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
