//! The mount table: where file systems are, other ways to what is hidden, and views of the kernel that are not a
//! workload's own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The mounts of one mount namespace, in the order of mounting.
pub(crate) struct MountInfo {
    mounts: Vec<Mount>,
}

/// One line of mountinfo (proc(5)).
#[derive(Debug)]
pub(crate) struct Mount {
    /// Which file system, as `major:minor`.
    device: String,
    /// Which part of it.
    pub(crate) root: PathBuf,
    /// Where.
    pub(crate) point: PathBuf,
    /// Its type.
    pub(crate) kind: String,
    /// Whether neither the mount nor its file system is read-only.
    pub(crate) is_writable: bool,
}

/// File systems through which a process reaches past its namespaces, whatever they are mounted on: other processes,
/// cgroups, pinned programs, devices.
const VIEWS: [&str; 14] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "bpf",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "pstore",
    "efivarfs",
    "devtmpfs",
    "devpts",
    "nsfs",
];
/// What replaces these is mounted by [`crate::run`].
const OWN_VIEWS: [&str; 3] = ["/proc", "/sys", "/dev"];

impl MountInfo {
    /// Reads the table of the calling process.
    pub(crate) fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read("/proc/self/mountinfo")?))
    }

    /// Reads a table, for example that of another process.
    pub(crate) fn parse(table: &[u8]) -> Self {
        Self { mounts: table.split(|byte| *byte == b'\n').filter_map(Mount::parse).collect() }
    }

    /// Every mount, in the order of mounting.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }

    /// The first place where a whole file system of this type is mounted: a bind mount of a part of it does not count.
    pub(crate) fn whole(&self, kind: &str) -> Option<&Path> {
        let is_whole = |mount: &&Mount| mount.kind == kind && mount.root == Path::new("/");
        self.mounts.iter().find(is_whole).map(|mount| mount.point.as_path())
    }

    /// Whether a file system of this type is what is mounted at `point`.
    pub(crate) fn is_mounted(&self, kind: &str, point: &Path) -> bool {
        // Of mounts on the same point, the last one is on top.
        self.mounts.iter().rfind(|mount| mount.point == point).is_some_and(|top| top.kind == kind)
    }

    /// Mount points of views of the kernel elsewhere than at their usual places.
    pub(crate) fn foreign_views(&self) -> impl Iterator<Item = &Path> {
        self.mounts
            .iter()
            .filter(|mount| VIEWS.contains(&mount.kind.as_str()))
            .map(|mount| mount.point.as_path())
            .filter(|point| !OWN_VIEWS.iter().any(|own| point.starts_with(own)))
    }

    /// Every path that leads to the same file or directory as `path` (which is canonical), `path` included: the same
    /// file system may be mounted at several places, as a whole or in part.
    pub(crate) fn names_of(&self, path: &Path) -> Vec<PathBuf> {
        let mut names = vec![path.to_owned()];
        names.extend(self.candidates(path).into_iter().filter(|other| same_file(path, other)));
        names
    }

    fn candidates(&self, path: &Path) -> Vec<PathBuf> {
        // Of mounts on the same point, the last one is on top.
        let covering = self.mounts.iter().filter(|mount| path.starts_with(&mount.point)).reduce(
            |best, mount| {
                let deeper = mount.point.components().count() >= best.point.components().count();
                if deeper { mount } else { best }
            },
        );
        let Some(covering) = covering else { return Vec::new() };
        let Ok(rest) = path.strip_prefix(&covering.point) else { return Vec::new() };
        let inside = covering.root.join(rest);
        self.mounts
            .iter()
            .filter(|mount| mount.device == covering.device)
            .filter_map(|mount| {
                let rest = inside.strip_prefix(&mount.root).ok()?;
                // Joining an empty path would add a slash, which a file does not take.
                let whole = rest.as_os_str().is_empty();
                Some(if whole { mount.point.clone() } else { mount.point.join(rest) })
            })
            .filter(|candidate| candidate != path)
            .collect()
    }

    /// Mount points of what lies below the directory `path` (which is canonical), where it is mounted elsewhere too.
    pub(crate) fn parts_of(&self, path: &Path) -> Vec<PathBuf> {
        self.mounts
            .iter()
            .filter(|part| !part.point.starts_with(path))
            .filter(|part| {
                self.mounts.iter().any(|whole| {
                    whole.device == part.device
                        && path
                            .strip_prefix(&whole.point)
                            .is_ok_and(|rest| part.root.starts_with(whole.root.join(rest)))
                })
            })
            .map(|part| part.point.clone())
            .collect()
    }
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
        let root = unescape(fields.next()?);
        let point = unescape(fields.next()?);
        let options = fields.next()?;
        let mut fields = fields.skip_while(|field| field != b"-");
        let kind = fields.nth(1)?;
        // After the source, those of the file system itself.
        let of_all = fields.nth(1).unwrap_or_default();
        let is_read_only =
            |options: &[u8]| options.split(|byte| *byte == b',').any(|option| option == b"ro");
        let kind = String::from_utf8_lossy(kind).into_owned();
        let is_writable = !is_read_only(options) && !is_read_only(of_all);
        Some(Self { device, root, point, kind, is_writable })
    }
}

/// The kernel writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.split_first_chunk::<3>().filter(|_| *first == b'\\').and_then(
            |(digits, after)| {
                let text = std::str::from_utf8(digits).ok()?;
                Some((u8::from_str_radix(text, 8).ok()?, after))
            },
        );
        let (byte, after) = octal.unwrap_or((*first, after));
        bytes.push(byte);
        rest = after;
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"27 1 254:0 / / rw - ext4 /dev/vda rw\n\
        22 27 0:21 / /proc rw shared:5 - proc proc rw\n\
        30 27 0:21 / /srv/root/proc rw master:1 shared:2 - proc proc rw\n\
        41 27 0:38 / /mnt/cg\\0402 rw - cgroup2 cgroup2 rw\n\
        42 23 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
        50 27 254:0 /etc/tollgate /srv/config rw - ext4 /dev/vda rw\n\
        51 27 254:0 /etc/tollgate/secrets/gmail /srv/gmail rw - ext4 /dev/vda rw\n\
        52 27 254:1 / /var rw - ext4 /dev/vdb rw\n\
        53 27 254:1 /lib/tollgate/deep /srv/deep rw - ext4 /dev/vdb rw\n\
        54 27 254:0 / /host rw - ext4 /dev/vda rw\n\
        broken line\n";

    #[test]
    fn a_file_is_found_through_every_mount_of_its_file_system() {
        let table = MountInfo::parse(TABLE);
        let candidates = table.candidates(Path::new("/etc/tollgate/secrets/gmail"));
        let expected =
            ["/srv/config/secrets/gmail", "/srv/gmail", "/host/etc/tollgate/secrets/gmail"];
        assert_eq!(candidates, expected.map(PathBuf::from));
        assert_eq!(table.candidates(Path::new("/var/lib/tollgate")), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_part_of_a_directory_that_is_mounted_elsewhere_is_found() {
        let table = MountInfo::parse(TABLE);
        assert_eq!(table.parts_of(Path::new("/var/lib/tollgate")), [PathBuf::from("/srv/deep")]);
        let parts = table.parts_of(Path::new("/etc/tollgate"));
        assert_eq!(parts, ["/srv/config", "/srv/gmail"].map(PathBuf::from));
        assert_eq!(table.parts_of(Path::new("/etc/other")), Vec::<PathBuf>::new());
    }

    #[test]
    fn views_of_the_kernel_count_wherever_they_are_mounted_but_at_their_own_places() {
        let table = MountInfo::parse(TABLE);
        let views: Vec<_> = table.foreign_views().collect();
        assert_eq!(views, [Path::new("/srv/root/proc"), Path::new("/mnt/cg 2")]);
    }

    #[test]
    fn the_v2_hierarchy_is_found_on_unified_and_hybrid_hosts() {
        let found = |table: &[u8]| MountInfo::parse(table).whole("cgroup2").map(Path::to_owned);
        let unified =
            b"25 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = b"25 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n26 1 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let v1_only = b"25 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let part = b"25 1 0:22 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(found(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(found(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!((found(v1_only), found(part)), (None, None));
        assert_eq!(found(TABLE), Some(PathBuf::from("/mnt/cg 2")));
    }

    #[test]
    fn a_file_system_counts_only_at_its_place_by_its_type_and_on_top() {
        let at = |table: &[u8]| MountInfo::parse(table).is_mounted("bpf", Path::new("/sys/fs/bpf"));
        let yes = b"30 25 0:27 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n";
        assert!(at(yes));
        assert!(!at(b"30 25 0:27 / /mnt/bpf rw,nosuid - bpf bpf rw\n"));
        let other_type = b"30 25 0:27 / /sys/fs/bpf rw,nosuid - tmpfs bpf rw\n";
        assert!(!at(other_type));
        assert!(!at(&[yes.as_slice(), other_type].concat()));
    }
}
