//! Looking at the host.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use aya::programs::{ProgramType, loaded_programs};
use aya::sys::{BpfHelper, is_helper_supported};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::{Feature, Host, PIN_DIRECTORY, Problem, Severity};
use crate::capture::attempt::{attached_to, interface_has_tcx};
use crate::capture::{CgroupRoot, GATE_PREFIX, SLICE, slice_is_gated, tells_netns_cookie};

/// Programs of others on one hook of a cgroup that workloads are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hooked {
    /// The cgroup's path below the hierarchy.
    pub(super) cgroup: String,
    /// The hook.
    pub(super) hook: &'static str,
    /// How they are attached.
    pub(super) flags: u32,
    /// Their names.
    pub(super) programs: Vec<String>,
}

/// The hooks that Tollgate uses, by their number (`enum bpf_attach_type`, linux/bpf.h).
const HOOKS: [(u32, &str); 14] = [
    (0, "ingress"),
    (1, "egress"),
    (2, "sock_create"),
    (3, "sock_ops"),
    (10, "connect4"),
    (11, "connect6"),
    (12, "post_bind4"),
    (13, "post_bind6"),
    (14, "sendmsg4"),
    (15, "sendmsg6"),
    (19, "recvmsg4"),
    (20, "recvmsg6"),
    (29, "getpeername4"),
    (30, "getpeername6"),
];

/// `BPF_F_ALLOW_OVERRIDE` and `BPF_F_ALLOW_MULTI`.
const SHARED: u32 = 1 | 2;

impl Hooked {
    pub(super) fn problem(&self) -> Option<Problem> {
        if self.programs.is_empty() {
            return None;
        }
        let Self { cgroup, hook, programs, .. } = self;
        let programs = programs.join(", ");
        if self.flags & SHARED == 0 {
            return Some(Problem {
                name: "exclusive_programs",
                severity: Severity::Fatal,
                found: format!(
                    "{programs} has the hook {hook} of the cgroup {cgroup} for itself: the kernel refuses others below"
                ),
                remedy: "have its owner attach it with BPF_F_ALLOW_MULTI or by a link".to_owned(),
            });
        }
        let rewrites = hook.starts_with("connect") || hook.starts_with("sendmsg");
        Some(Problem {
            name: "other_programs",
            severity: if rewrites { Severity::Warning } else { Severity::Note },
            found: format!(
                "{programs} is attached to the hook {hook} of the cgroup {cgroup}; it runs after Tollgate's"
            ),
            remedy: if rewrites {
                "make sure that it leaves connections to loopback alone: they are Tollgate's"
                    .to_owned()
            } else {
                "nothing is to be done: each of them can only refuse more".to_owned()
            },
        })
    }
}

pub(super) fn inspect() -> Host {
    Host {
        mountinfo: fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
        has_btf: fs::exists("/sys/kernel/btf/vmlinux").is_ok_and(|there| there),
        memory_lock: getrlimit(Resource::RLIMIT_MEMLOCK)
            .ok()
            .map(|(soft, _hard)| soft)
            .filter(|soft| *soft != RLIM_INFINITY),
        pin_directory: fs::symlink_metadata(PIN_DIRECTORY)
            .ok()
            .map(|found| (found.uid(), found.mode())),
        hooked: hooked(),
        slice_is_gated: CgroupRoot::find().ok().and_then(|root| slice_is_gated(&root)),
        features: features(),
    }
}

fn hooked() -> Vec<Hooked> {
    let Ok(root) = CgroupRoot::find() else { return Vec::new() };
    let mut names: Option<BTreeMap<u32, String>> = None;
    let mut found = Vec::new();
    for (cgroup, path) in [("/", root.mount().to_owned()), (SLICE, root.mount().join(SLICE))] {
        let Ok(directory) = root.open(&path) else { continue };
        for (number, hook) in HOOKS {
            let Ok(attached) = attached_to(&directory, number) else { continue };
            if attached.programs.is_empty() {
                continue;
            }
            let names = names.get_or_insert_with(program_names);
            let name = |id: &u32| names.get(id).cloned().unwrap_or_else(|| format!("program {id}"));
            let mut programs: Vec<String> = attached.programs.iter().map(name).collect();
            programs.retain(|name| !name.starts_with(GATE_PREFIX));
            found.push(Hooked { cgroup: cgroup.to_owned(), hook, flags: attached.flags, programs });
        }
    }
    found
}

fn program_names() -> BTreeMap<u32, String> {
    loaded_programs()
        .filter_map(Result::ok)
        .map(|program| {
            let name = program.name_as_str().filter(|name| !name.is_empty()).map(str::to_owned);
            (program.id(), name.unwrap_or_else(|| format!("program {}", program.id())))
        })
        .collect()
}

fn features() -> Vec<Feature> {
    let helper = |kind, helper| is_helper_supported(kind, helper).is_ok_and(|there| there);
    vec![
        Feature {
            name: "tcx",
            is_there: interface_has_tcx(LOOPBACK),
            without: "the wire fence uses clsact filters, which another administrator can remove",
        },
        Feature {
            name: "set_retval",
            is_there: helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval),
            without: "this kernel is not supported: the programs are refused (Linux 6.1 has it)",
        },
        Feature {
            name: "netns_cookie_of_packets",
            is_there: helper(ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_get_netns_cookie),
            without: "nothing is missing: the fence goes by the device alone",
        },
        Feature {
            name: "netns_cookie_of_sockets",
            is_there: tells_netns_cookie(),
            without: "this kernel is not supported: namespaces cannot be told apart (Linux 5.14 has it)",
        },
    ]
}

/// Index of `lo` in every namespace.
const LOOPBACK: u32 = 1;
