//! A kernel of a Debian package, with an initial file system that mounts this machine's root.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::{paths, run};

/// An unpacked kernel package.
pub(crate) struct Image {
    folder: PathBuf,
    release: String,
}

/// What the machine needs before it sees the root; all else is read from there.
const EARLY_MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
sh /load
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose host /lower
mount -t tmpfs -o size=3g tmpfs /upper; mkdir /upper/u /upper/w
mount -t overlay -o lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w overlay /root
mkdir -p /root/lib/modules/@RELEASE@
mount --bind /root@MODULES@ /root/lib/modules/@RELEASE@
mount --move /dev /root/dev; mount --move /proc /root/proc; mount --move /sys /root/sys
exec switch_root /root /bin/sh @SCRIPT@
"#;

impl Image {
    /// Downloads and unpacks the newest image that `package` depends on, unless that was done before.
    pub(crate) fn prepare(package: &str) -> Result<Self> {
        let depends = run::output(run::command("apt-cache").args(["depends", package]))?;
        let name = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"))
            .with_context(|| {
                format!("{package} depends on no kernel image; try: apt-get update")
            })?;
        let folder = paths::target().join("kernels").join(name);
        if !folder.join("unpacked").exists() {
            unpack(name, &folder)?;
        }
        let release = only_entry(&folder.join("lib/modules"))?;
        Ok(Self { folder, release })
    }

    /// What `uname -r` says there.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// Writes the initial file system whose first process ends in `script`, a path on this machine.
    pub(crate) fn initial_file_system(&self, script: &Path) -> Result<PathBuf> {
        let tree = self.folder.join("initial");
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        for folder in ["bin", "proc", "sys", "dev", "lower", "upper", "root", "modules"] {
            fs::create_dir_all(tree.join(folder))?;
        }
        let busybox = paths::find_program("busybox").context("busybox is missing")?;
        fs::copy(busybox, tree.join("bin/busybox"))?;
        fs::write(tree.join("load"), self.load_script(&tree.join("modules"))?)?;
        let modules = self.folder.join("lib/modules").join(&self.release);
        let init = INIT
            .replace("@RELEASE@", &self.release)
            .replace("@MODULES@", &modules.display().to_string())
            .replace("@SCRIPT@", &script.display().to_string());
        fs::write(tree.join("init"), init)?;
        fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
        let archive = self.folder.join("initial.cpio");
        let mut pack = run::command("sh");
        pack.args(["-c", "find . | cpio --quiet --create --format=newc"]);
        pack.current_dir(&tree).stdout(fs::File::create(&archive)?).stdin(Stdio::null());
        if !pack.status()?.success() {
            bail!("cannot pack {}", tree.display());
        }
        Ok(archive)
    }

    /// Copies the early modules to `to`, in the order in which they load, and returns the script that loads them.
    fn load_script(&self, to: &Path) -> Result<String> {
        let mut script = String::new();
        for module in EARLY_MODULES {
            let mut modprobe = run::command("modprobe");
            modprobe.args(["--show-depends", "-S", &self.release, "-d"]).arg(&self.folder);
            let lines = run::output(modprobe.arg(module))?;
            for path in lines.lines().filter_map(|line| line.trim().strip_prefix("insmod ")) {
                let path = Path::new(path.trim());
                let name = path.file_name().context("a module has a name")?.to_string_lossy();
                let target = to.join(&*name);
                if !target.exists() {
                    fs::copy(path, &target)?;
                    if name.ends_with(".xz") {
                        run::output(
                            run::command("xz").arg("--decompress").arg("--keep").arg(&target),
                        )?;
                    }
                    script += &format!("insmod /modules/{}\n", name.trim_end_matches(".xz"));
                }
            }
        }
        Ok(script)
    }
}

fn unpack(name: &str, folder: &Path) -> Result<()> {
    let downloads = paths::target().join("kernels/download");
    fs::create_dir_all(&downloads)?;
    fs::create_dir_all(folder)?;
    let mut download = run::command("apt-get");
    download.current_dir(&downloads).args(["-q", "download", name]);
    let remedy = "a package mirror must be reachable; try: apt-get update";
    run::logged(&format!("downloading {name}"), &mut download, "kernels.log", remedy)?;
    let prefix = format!("{name}_");
    let package = fs::read_dir(&downloads)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix))
        })
        .with_context(|| format!("no package of {name} was downloaded"))?;
    run::output(run::command("dpkg-deb").arg("--extract").arg(&package).arg(folder))?;
    let release = only_entry(&folder.join("lib/modules"))?;
    run::output(run::command("depmod").arg("-b").arg(folder).arg(release))?;
    fs::remove_file(package)?;
    fs::write(folder.join("unpacked"), "")?;
    Ok(())
}

fn only_entry(folder: &Path) -> Result<String> {
    let entry = fs::read_dir(folder)?.flatten().next().context("an empty package")?;
    Ok(entry.file_name().to_string_lossy().into_owned())
}
