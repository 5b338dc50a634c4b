//! The links of one cgroup: found by their pins, held open, and checked against what the kernel really runs.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use super::bpf::{self, LinkInfo};
use super::programs::{PROGRAMS, Table};
use super::{Cgroup, Pins, ProgramsError};

/// The links of one cgroup. As long as they are held, not even removing their pins detaches a program.
#[derive(Debug)]
pub(super) struct Links {
    /// Which programs they are for.
    table: Table,
    links: Vec<Link>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Link {
    /// Name of the program, and of the pin.
    pub(super) name: &'static str,
    pub(super) fd: OwnedFd,
    /// As a number of `enum bpf_attach_type`.
    pub(super) hook: u32,
    /// Whether it was made just now, with the program of this version.
    pub(super) is_new: bool,
}

/// A pinned link, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedLink {
    /// Name of its pin.
    pub name: String,
    /// The kernel's number of the link; it stays the same when the program is replaced.
    pub link: u32,
    /// The kernel's number of the program that it runs.
    pub program: u32,
    /// The cgroup that it governs; 0 when there is none any more.
    pub cgroup: u64,
}

/// How the names of Tollgate's programs begin.
const OWN_PREFIX: &str = "tollgate_";
/// How those of the gate of the slice do: what the kernel keeps of their names.
pub(crate) const GATE_PREFIX: &str = "tollgate_slice_";

impl Links {
    /// The links that are pinned for `cgroup` and alive.
    pub(super) fn pinned(
        table: Table,
        cgroup: &Cgroup,
        pins: &Pins,
    ) -> Result<Self, ProgramsError> {
        let mut found = Self { table, links: Vec::new() };
        for &(name, hook) in table {
            let path = pins.link_path(name);
            if !path.exists() {
                continue;
            }
            let failed = |source| ProgramsError::Link {
                step: "open the pinned link",
                name: name.to_owned(),
                source,
            };
            let fd = bpf::open_pin(&path).map_err(failed)?;
            let info = bpf::link_info(&fd).map_err(failed)?;
            let hook = hook.number(name)?;
            if info.cgroup == 0 {
                continue;
            }
            if info.cgroup != cgroup.id() || info.hook != hook {
                return Err(ProgramsError::ForeignLink { path });
            }
            found.add(Link { name, fd, hook, is_new: false });
        }
        Ok(found)
    }

    pub(super) fn add(&mut self, link: Link) {
        self.links.push(link);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Whether every program is attached to this very cgroup and runs for its sockets.
    pub(super) fn verify(&self, cgroup: &Cgroup) -> Result<(), ProgramsError> {
        for (name, _) in self.table {
            let name = *name;
            let broken = |what| ProgramsError::NotAtWork { name: name.to_owned(), what };
            let link = self.get(name).ok_or_else(|| broken("it has no link"))?;
            let info = link.info()?;
            if info.cgroup != cgroup.id() {
                return Err(broken("its link was detached"));
            }
            let effective = effective(cgroup, link.hook, name)?;
            if !effective.contains(&info.program) {
                return Err(broken("another program runs in its place"));
            }
        }
        Ok(())
    }

    /// Two programs of Tollgate on one socket redirect twice; the second refuses what the first has redirected.
    pub(super) fn refuse_doubling(&self, cgroup: &Cgroup) -> Result<(), ProgramsError> {
        for &(name, hook) in self.table {
            let own = match self.get(name) {
                Some(link) => Some(link.info()?.program),
                None => None,
            };
            let others = effective(cgroup, hook.number(name)?, name)?;
            let is_doubled = others.into_iter().filter(|id| Some(*id) != own).any(is_own_program);
            if is_doubled {
                return Err(ProgramsError::Doubled { path: cgroup.path().to_owned() });
            }
        }
        Ok(())
    }

    /// Whether every link is pinned, so that it outlives whoever holds it.
    pub(super) fn verify_pins(&self, pins: &Pins) -> Result<(), ProgramsError> {
        match self.links.iter().find(|link| !pins.link_path(link.name).exists()) {
            Some(link) => Err(ProgramsError::NotAtWork {
                name: link.name.to_owned(),
                what: "its pin was removed",
            }),
            None => Ok(()),
        }
    }

    /// Pins again what somebody has unpinned.
    pub(super) fn restore_pins(&self, pins: &Pins) -> Result<(), ProgramsError> {
        pins.restore_directory()?;
        for link in &self.links {
            let path = pins.link_path(link.name);
            if link.info()?.cgroup != 0 && !path.exists() {
                bpf::pin(&link.fd, &path).map_err(|source| ProgramsError::Link {
                    step: "pin a link again",
                    name: link.name.to_owned(),
                    source,
                })?;
            }
        }
        Ok(())
    }
}

impl Link {
    fn info(&self) -> Result<LinkInfo, ProgramsError> {
        bpf::link_info(&self.fd).map_err(|source| ProgramsError::Link {
            step: "look at a link",
            name: self.name.to_owned(),
            source,
        })
    }
}

/// A cgroup at or below `path` to which programs of Tollgate are attached.
pub(super) fn governed_below(path: &Path) -> Option<std::path::PathBuf> {
    for entry in fs::read_dir(path).ok()?.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let below = entry.path();
        if has_own_programs(&below) {
            return Some(below);
        }
        if let Some(found) = governed_below(&below) {
            return Some(found);
        }
    }
    None
}

fn has_own_programs(path: &Path) -> bool {
    File::open(path).is_ok_and(|cgroup| own_programs(&cgroup).any(|is_there| is_there))
}

/// Whether every program of a workload is attached to the cgroup whose directory this is.
pub(super) fn has_every_own_program(cgroup: &File) -> bool {
    own_programs(cgroup).all(|is_there| is_there)
}

/// For each program of a workload, whether the cgroup has one of Tollgate's on its hook.
fn own_programs(cgroup: &File) -> impl Iterator<Item = bool> {
    PROGRAMS.iter().map(move |(name, hook)| {
        let hook = hook.number(name).ok();
        hook.and_then(|hook| bpf::programs_on(cgroup, hook, false).ok())
            .is_some_and(|attached| attached.programs.into_iter().any(is_own_program))
    })
}

fn effective(cgroup: &Cgroup, hook: u32, name: &str) -> Result<Vec<u32>, ProgramsError> {
    bpf::programs_on(cgroup, hook, true).map(|attached| attached.programs).map_err(|source| {
        ProgramsError::Link { step: "ask what is attached", name: name.to_owned(), source }
    })
}

/// A program that is gone by now is nobody's. Those of the slice's gate redirect nothing, and are no workload's.
fn is_own_program(id: u32) -> bool {
    bpf::program_name(id)
        .is_ok_and(|name| name.starts_with(OWN_PREFIX) && !name.starts_with(GATE_PREFIX))
}

/// The links that are pinned in a directory, whatever they are called.
pub(super) fn pinned_links(directory: &Path) -> std::io::Result<Vec<PinnedLink>> {
    let mut links = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // A map is no link, and the kernel would describe it in other words.
        if super::pins::is_map(&entry.file_name().to_string_lossy()) {
            continue;
        }
        // Neither is a link to a device one to a cgroup.
        let Some(info) = bpf::open_pin(&entry.path()).and_then(bpf::link_info).ok() else {
            continue;
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        links.push(PinnedLink { name, link: info.id, program: info.program, cgroup: info.cgroup });
    }
    Ok(links)
}
