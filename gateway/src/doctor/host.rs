//! What is wrong with this host, by name and with its remedy.
//!
//! [`Host::inspect`] looks; everything else is pure, so that hosts of all kinds can be told apart from texts. Features
//! are probed, never concluded from a version.

mod probe;

use super::{Report, Verdict};
use crate::capture::SLICE;
use probe::Hooked;

/// What was found on this host.
#[derive(Debug, Clone)]
pub struct Host {
    /// `/proc/self/mountinfo`.
    mountinfo: String,
    /// Whether the kernel describes its own types.
    has_btf: bool,
    /// Bytes that may be locked; none means all.
    memory_lock: Option<u64>,
    /// Who owns Tollgate's directory of pins, and its mode, if it is there.
    pin_directory: Option<(u32, u32)>,
    /// Programs that others have attached above the workloads.
    hooked: Vec<Hooked>,
    /// Whether Tollgate's slice has its gate, where there is such a slice.
    slice_is_gated: Option<bool>,
    /// What the kernel can, where kernels differ.
    features: Vec<Feature>,
}

/// Something that is wrong with the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A name for programs.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What helps.
    pub remedy: String,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Note,
    /// Some workloads cannot be governed.
    Warning,
    /// No workload can be governed.
    Fatal,
}

/// Something that not every kernel can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// A name for programs.
    pub name: &'static str,
    /// Whether this kernel can it.
    pub is_there: bool,
    /// What happens without it.
    pub without: &'static str,
}

impl Severity {
    /// The word for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Fatal => "fatal",
        }
    }
}

impl Host {
    /// Looks at this host. What cannot be looked at (without root, most of it) counts as not there.
    #[must_use]
    pub fn inspect() -> Self {
        probe::inspect()
    }

    /// What the kernel can, where kernels differ.
    #[must_use]
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// Every problem, the worst first. `report` is what the conformance run said, if there was one.
    #[must_use]
    pub fn problems(&self, report: Option<&Report>) -> Vec<Problem> {
        let mut problems = Vec::new();
        problems.extend(self.cgroups());
        problems.extend(self.old_controllers(report));
        problems.extend(self.hooked.iter().filter_map(Hooked::problem));
        problems.extend(self.bpf_fs());
        problems.extend(self.slice());
        if !self.has_btf {
            problems.push(Problem {
                name: "no_btf",
                severity: Severity::Fatal,
                found: "the kernel does not describe its types (no /sys/kernel/btf/vmlinux)"
                    .to_owned(),
                remedy: "use a kernel that was built with CONFIG_DEBUG_INFO_BTF".to_owned(),
            });
        }
        if let (Some(bytes), None) = (self.memory_lock, report)
            && bytes < MEMORY_LOCK_ENOUGH
        {
            problems.push(Problem {
                name: "memory_lock",
                severity: Severity::Warning,
                found: format!(
                    "at most {bytes} bytes may be locked; older kernels count BPF maps as locked memory"
                ),
                remedy: "raise the limit: LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited"
                    .to_owned(),
            });
        }
        problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
        problems
    }

    fn cgroups(&self) -> Option<Problem> {
        let has_v2 = mounts(&self.mountinfo).any(|mount| mount.kind == "cgroup2");
        let has_v1 = mounts(&self.mountinfo).any(|mount| mount.kind == "cgroup");
        let remedy = "boot with systemd.unified_cgroup_hierarchy=1".to_owned();
        match (has_v2, has_v1) {
            (false, _) => Some(Problem {
                name: "no_cgroup_v2",
                severity: Severity::Fatal,
                found: "no cgroup v2 hierarchy is mounted".to_owned(),
                remedy: format!("{remedy}, or mount one: mount -t cgroup2 none /sys/fs/cgroup"),
            }),
            (true, true) => Some(Problem {
                name: "hybrid_cgroups",
                severity: Severity::Warning,
                found: "cgroup v1 and v2 are both mounted: an engine may leave its workloads in the root of v2, \
                        where they cannot be told apart"
                    .to_owned(),
                remedy: format!(
                    "{remedy}, or have the engine put its workloads into v2 (cgroupdriver=systemd)"
                ),
            }),
            (true, false) => None,
        }
    }

    /// Before Linux 5.15 the use of one of these silently takes new sockets out of their v2 cgroup. Whether it does is
    /// seen, not concluded: then no hook runs at all.
    fn old_controllers(&self, report: Option<&Report>) -> Option<Problem> {
        let found: Vec<&str> = mounts(&self.mountinfo)
            .filter(|mount| mount.kind == "cgroup")
            .flat_map(|mount| mount.options.split(','))
            .filter(|option| matches!(*option, "net_cls" | "net_prio"))
            .collect();
        if found.is_empty() {
            return None;
        }
        let is_broken = report.is_some_and(hooks_never_run);
        Some(Problem {
            name: "net_cls_net_prio",
            severity: if is_broken { Severity::Fatal } else { Severity::Note },
            found: if is_broken {
                format!(
                    "cgroup v1 {} is in use and switches the hooks of this kernel off",
                    found.join(", ")
                )
            } else {
                format!(
                    "cgroup v1 {} is mounted; the hooks of this kernel run all the same",
                    found.join(", ")
                )
            },
            remedy: "boot with cgroup_no_v1=net_cls,net_prio".to_owned(),
        })
    }

    fn slice(&self) -> Option<Problem> {
        (self.slice_is_gated == Some(false)).then(|| Problem {
            name: "open_slice",
            severity: Severity::Warning,
            found: format!(
                "{SLICE} has no gate: what is started in it is open until it is found, as anywhere else"
            ),
            remedy: "start `tollgate daemon`, and start what is in the slice anew".to_owned(),
        })
    }

    fn bpf_fs(&self) -> Option<Problem> {
        if let Some((owner, mode)) = self.pin_directory
            && (owner != 0 || mode & 0o022 != 0)
        {
            return Some(Problem {
                name: "foreign_pins",
                severity: Severity::Fatal,
                found: format!(
                    "{PIN_DIRECTORY} belongs to user {owner} with mode {:o}: somebody else could move pinned programs",
                    mode & 0o7777
                ),
                remedy: format!("remove it: rm -r {PIN_DIRECTORY}"),
            });
        }
        let is_mounted =
            mounts(&self.mountinfo).any(|mount| mount.kind == "bpf" && mount.point == BPF_FS);
        (!is_mounted).then(|| Problem {
            name: "no_bpf_fs",
            severity: Severity::Note,
            found: format!("no BPF file system at {BPF_FS}: Tollgate mounts one, which ends with this mount namespace"),
            remedy: format!("mount it at boot: bpf {BPF_FS} bpf mode=0700 0 0 in /etc/fstab"),
        })
    }
}

/// Where programs are pinned.
const BPF_FS: &str = "/sys/fs/bpf";
const PIN_DIRECTORY: &str = "/sys/fs/bpf/tollgate";
/// The maps of a few workloads.
const MEMORY_LOCK_ENOUGH: u64 = 64 << 20;

/// Whether every way that a socket hook is to close is open.
fn hooks_never_run(report: &Report) -> bool {
    report.rows().iter().all(|row| !matches!(row.verdict(), Verdict::Closed))
}

/// One line of a mountinfo (proc(5)).
struct Mount<'a> {
    point: &'a str,
    kind: &'a str,
    /// Options of the file system, which for cgroup v1 name the controllers.
    options: &'a str,
}

fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        Some(Mount {
            point: before.split(' ').nth(4)?,
            kind: after.next()?,
            options: after.nth(1).unwrap_or_default(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "25 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
                           30 25 0:27 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n";
    const CPU_V1: &str = "26 1 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
    const NET_V1: &str = "27 1 0:24 / /sys/fs/cgroup/net rw - cgroup cgroup rw,net_cls,net_prio\n";

    fn host(mountinfo: &str) -> Host {
        Host {
            mountinfo: mountinfo.to_owned(),
            has_btf: true,
            memory_lock: None,
            pin_directory: None,
            hooked: Vec::new(),
            slice_is_gated: None,
            features: Vec::new(),
        }
    }

    fn named(host: &Host) -> Vec<(&'static str, Severity)> {
        host.problems(None).into_iter().map(|problem| (problem.name, problem.severity)).collect()
    }

    #[test]
    fn an_ordinary_host_has_no_problem() {
        assert_eq!(named(&host(UNIFIED)), []);
    }

    #[test]
    fn hierarchies_and_mounts_are_named_with_their_severity() {
        let bpf_only = "30 25 0:27 / /sys/fs/bpf rw shared:9 - bpf bpf rw\n";
        let rows = [
            (format!("{UNIFIED}{CPU_V1}"), vec![("hybrid_cgroups", Severity::Warning)]),
            (
                format!("{UNIFIED}{NET_V1}"),
                vec![("hybrid_cgroups", Severity::Warning), ("net_cls_net_prio", Severity::Note)],
            ),
            (format!("{bpf_only}{CPU_V1}"), vec![("no_cgroup_v2", Severity::Fatal)]),
            (
                "25 1 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n30 25 0:27 / /mnt rw - bpf bpf rw\n".to_owned(),
                vec![("no_bpf_fs", Severity::Note)],
            ),
        ];
        for (mountinfo, expected) in rows {
            assert_eq!(named(&host(&mountinfo)), expected, "{mountinfo}");
        }
    }

    #[test]
    fn pins_of_somebody_else_are_fatal_and_ones_own_are_not() {
        for (found, expected) in [
            (Some((0, 0o40_700)), vec![]),
            (Some((1000, 0o40_700)), vec![("foreign_pins", Severity::Fatal)]),
            (Some((0, 0o40_777)), vec![("foreign_pins", Severity::Fatal)]),
        ] {
            let host = Host { pin_directory: found, ..host(UNIFIED) };
            assert_eq!(named(&host), expected, "{found:?}");
        }
    }

    #[test]
    fn a_slice_without_a_gate_is_named_and_one_with_it_or_none_is_not() {
        let rows = [
            (Some(false), vec![("open_slice", Severity::Warning)]),
            (Some(true), vec![]),
            (None, vec![]),
        ];
        for (slice_is_gated, expected) in rows {
            let host = Host { slice_is_gated, ..host(UNIFIED) };
            assert_eq!(named(&host), expected, "{slice_is_gated:?}");
        }
    }

    #[test]
    fn a_memory_limit_matters_only_where_the_programs_could_not_be_tried() {
        let host = Host { memory_lock: Some(65_536), has_btf: false, ..host(UNIFIED) };
        let expected = [("no_btf", Severity::Fatal), ("memory_lock", Severity::Warning)];
        assert_eq!(named(&host), expected);
    }

    #[test]
    fn exclusive_programs_of_others_are_fatal_and_shared_ones_are_named() {
        let hooked = |flags, hook| Hooked {
            cgroup: "/".to_owned(),
            hook,
            flags,
            programs: vec!["cil_sock4_conne".to_owned()],
        };
        let host = Host {
            hooked: vec![hooked(2, "connect4"), hooked(0, "egress"), hooked(2, "egress")],
            ..host(UNIFIED)
        };
        let problems = host.problems(None);
        let expected = [
            ("exclusive_programs", Severity::Fatal),
            ("other_programs", Severity::Warning),
            ("other_programs", Severity::Note),
        ];
        assert_eq!(named(&host), expected);
        assert!(problems.iter().all(|problem| problem.found.contains("cil_sock4_conne")));
    }
}
