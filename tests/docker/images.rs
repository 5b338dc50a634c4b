//! The images: folders that are packed and imported, because nothing can be pulled here.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::common::world::World;

/// The machine's own programs, whose folders containers mount ([`MACHINE_MOUNTS`]), over a small `/etc` of its own
/// with the machine's roots.
pub(crate) const MACHINE: &str = "machine";
/// Busybox and a static client, no roots at all.
pub(crate) const BARE: &str = "bare";
/// A static client, a bundle and nothing else: no shell, a user of its own.
pub(crate) const DISTROLESS: &str = "distroless";

/// [`BARE`], and as its entrypoint a static program that tries to get out with its first instructions.
pub(crate) const FIRST: &str = "first";
/// A program that sends from its first instruction on, and nothing else.
pub(crate) const FIRE: &str = "fire";

/// What `docker run` needs for [`MACHINE`].
pub(crate) fn machine_mounts() -> Vec<String> {
    let mut folders: Vec<PathBuf> = vec!["/usr".into()];
    let python = python_prefix();
    if !python.starts_with("/usr") {
        folders.push(python);
    }
    let argument = |folder: PathBuf| format!("--volume={0}:{0}:ro", folder.display());
    folders.into_iter().map(argument).collect()
}

/// Python's real program: what stands in `PATH` may be a script that looks for it each time.
pub(crate) fn python() -> String {
    ask_python("import sys; print(sys.executable)")
}

fn python_prefix() -> PathBuf {
    ask_python("import sys; print(sys.base_prefix)").into()
}

fn ask_python(question: &str) -> String {
    let output = Command::new("python3").args(["-c", question]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Fills `root`; what `docker import` is to change.
pub(crate) fn furnish(image: &str, root: &Path, world: &World) -> Vec<&'static str> {
    for folder in ["dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let users = "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:agent:/home/agent:/bin/sh\n";
    fs::write(root.join("etc/passwd"), users).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nagent:x:1000:\n").unwrap();
    match image {
        MACHINE => machine(root, world),
        BARE => bare(root),
        FIRST => first(root),
        DISTROLESS => distroless(root),
        FIRE => fire(root),
        other => panic!("no image is called {other}"),
    }
}

fn machine(root: &Path, world: &World) -> Vec<&'static str> {
    for folder in ["usr", "home/agent", "root", "var/tmp", "etc/ssl"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for folder in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{folder}"), root.join(folder)).unwrap();
    }
    let etc = root.join("etc").display().to_string();
    let mut copied = vec!["/etc/alternatives".to_owned(), "/etc/nsswitch.conf".to_owned()];
    for entry in fs::read_dir("/etc").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("java") {
            copied.push(format!("/etc/{name}"));
        }
    }
    for file in copied {
        world.start_ungoverned(&[], &["cp", "-a", &file, &etc]).wait().ok();
    }
    let ssl = format!("{etc}/ssl");
    world.start_ungoverned(&[], &["cp", "-a", "/etc/ssl/certs", &ssl]).wait().ok();
    vec!["ENV PATH=/usr/local/bin:/usr/bin:/bin"]
}

fn bare(root: &Path) -> Vec<&'static str> {
    fs::create_dir(root.join("bin")).unwrap();
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].map(Path::new);
    let busybox = busybox.into_iter().find(|path| path.exists()).expect("busybox");
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "ls", "cat", "id"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::copy(static_client(), root.join("bin/get")).unwrap();
    vec!["ENV PATH=/bin"]
}

fn first(root: &Path) -> Vec<&'static str> {
    let mut changes = bare(root);
    let mut cc = Command::new("cc");
    cc.args(["-static", "-O2", "-o"]).arg(root.join("bin/first")).arg(fixture("first.c"));
    assert!(cc.status().expect("cc is there").success(), "the static program is not built");
    changes.push("ENTRYPOINT [\"/bin/first\"]");
    changes
}

fn distroless(root: &Path) -> Vec<&'static str> {
    fs::create_dir_all(root.join("etc/ssl/certs")).unwrap();
    let bundle = "/etc/ssl/certs/ca-certificates.crt";
    fs::copy(bundle, root.join(bundle.trim_start_matches('/'))).unwrap();
    fs::copy(static_client(), root.join("get")).unwrap();
    vec!["USER 65532:65532", "ENTRYPOINT [\"/get\"]", "CMD [\"wait\"]"]
}

fn fire(root: &Path) -> Vec<&'static str> {
    let mut compiler = Command::new("cc");
    compiler.args(["-static", "-O2", "-D_GNU_SOURCE", "-o"]).arg(root.join("fire"));
    let compiled = compiler.arg(fixture("fire.c")).status().expect("a C compiler is there");
    assert!(compiled.success(), "the static sender is not built");
    vec!["ENTRYPOINT [\"/fire\"]"]
}

/// A client that needs nothing but a bundle, built once for all runs of the tests.
pub(crate) fn static_client() -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = fixture("get.go");
    let program = folder.join("docker-get");
    let mut go = Command::new("go");
    go.args(["build", "-o"]).arg(&program).arg(source).env("CGO_ENABLED", "0");
    go.env("GOCACHE", folder.join("go-cache")).env("GOPATH", folder.join("go"));
    assert!(go.status().expect("go is there").success(), "the static client is not built");
    program
}

/// Path of a file of these tests.
pub(crate) fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "fixtures", "docker", name].iter().collect()
}
