//! The fence's programs on the host's end of a wire: by tcx where the kernel has it, else by a clsact filter.

use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, tc};

use super::WireError;
use crate::capture::{Link, PinError, Pins, ProgramsError};

/// How the programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attachment {
    /// By tcx links, which are pinned; by clsact filters where the kernel has no tcx (before 6.6).
    #[default]
    Probed,
    /// By clsact filters. They are no links and cannot be pinned: they stay until the interface goes, or until they are
    /// taken off.
    Clsact,
}

/// The two programs.
pub(super) struct Programs {
    ends: [End; 2],
    how: Attachment,
}

struct End {
    name: &'static str,
    suffix: &'static str,
    direction: TcAttachType,
    program: SchedClassifier,
}

/// What the workload sends comes in at the host's end.
const ENDS: [(&str, &str, TcAttachType); 2] = [
    ("tollgate_wire_out", "out", TcAttachType::Ingress),
    ("tollgate_wire_in", "in", TcAttachType::Egress),
];

/// The filters' place, the same for every gateway, so that the next one finds them. First, and under a number that
/// nobody has by accident ("toll").
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0x746f, 0x6c6c);

impl Programs {
    pub(super) fn load(ebpf: &mut Ebpf) -> Result<Self, ProgramsError> {
        let [out, inward] = ENDS.map(|(name, suffix, direction)| {
            load(ebpf, name).map(|program| End { name, suffix, direction, program })
        });
        Ok(Self { ends: [out?, inward?], how: Attachment::Probed })
    }

    pub(super) fn attach_by(&mut self, how: Attachment) {
        self.how = how;
    }

    /// Fences one interface of the calling thread's namespace in both directions. Whether it was fenced already, by an
    /// earlier gateway: then its programs are replaced, with no moment without one.
    pub(super) fn fence(&mut self, outer: &Link, pins: &Pins) -> Result<bool, WireError> {
        let mut was_there = true;
        for end in &mut self.ends {
            let path = pins.link_path(&pin_name(outer.index, end.suffix));
            let name = end.name;
            let failed = |step| move |source| ProgramsError::Program { step, name, source };
            if self.how == Attachment::Probed {
                match attach_tcx(end, outer, &path) {
                    Ok(found) => {
                        was_there &= found;
                        continue;
                    }
                    Err(TcxError::Pin(error)) => return Err(error.into()),
                    Err(TcxError::Program(error)) if !has_no_tcx(&error) => {
                        return Err(failed("attach")(error).into());
                    }
                    Err(TcxError::Program(error)) => {
                        tracing::info!(%error, "this kernel has no tcx: clsact filters instead");
                        self.how = Attachment::Clsact;
                    }
                }
            }
            let found = attach_clsact(&mut end.program, &outer.name, end.direction);
            was_there &= found.map_err(failed("attach"))?;
        }
        Ok(was_there)
    }

    /// Whether both programs still run on an interface, by links that are pinned. Of filters nobody tells.
    pub(super) fn are_at_work(&self, outer: &Link, pins: &Pins) -> bool {
        self.how == Attachment::Clsact
            || self.ends.iter().all(|end| {
                pins.link_path(&pin_name(outer.index, end.suffix)).exists()
                    && is_attached(end, outer)
            })
    }

    /// The interface is gone, and its programs with it: removes the pins.
    pub(super) fn forget(&self, index: u32, pins: &Pins) -> Result<(), PinError> {
        for end in &self.ends {
            let path = pins.link_path(&pin_name(index, end.suffix));
            unpin(&path)?;
        }
        Ok(())
    }

    /// Takes the filters off an interface, as they do not go with the pins.
    pub(super) fn take_off(&self, outer: &Link) {
        if self.how != Attachment::Clsact {
            return;
        }
        for end in &self.ends {
            // Detached when it is dropped.
            let filter =
                SchedClassifierLink::attached(&outer.name, end.direction, PRIORITY, HANDLE, None);
            if let Err(error) = filter.map(drop) {
                tracing::debug!(%error, "an interface is gone, and its filter with it");
            }
        }
    }
}

/// An interface that is closed as long as this lives.
#[derive(Default)]
pub(super) struct Held {
    /// Dropped to open it.
    links: Vec<SchedClassifierLink>,
}

impl Programs {
    /// Closes an interface in one direction by a link that nobody pins.
    pub(super) fn hold(
        &mut self,
        outer: &Link,
        direction: TcAttachType,
        held: &mut Held,
    ) -> Result<(), ProgramError> {
        for end in self.ends.iter_mut().filter(|end| end.direction == direction) {
            held.links.push(attach_first(end, outer)?);
        }
        Ok(())
    }

    /// Whether an interface is fenced in both directions, by programs like these but not by these.
    pub(super) fn is_fenced_by_others(&self, outer: &Link) -> bool {
        self.ends.iter().all(|end| {
            let all = SchedClassifier::query_tcx(&outer.name, end.direction);
            let (Ok(own), Ok((_revision, all))) = (end.program.info(), all) else { return false };
            all.iter().any(|one| one.id() != own.id() && one.name() == own.name())
        })
    }
}

fn attach_first(end: &mut End, outer: &Link) -> Result<SchedClassifierLink, ProgramError> {
    // Before every other: one that redirects would take frames past it.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = end.program.attach_with_options(&outer.name, end.direction, order)?;
    end.program.take_link(id)
}

fn pin_name(index: u32, suffix: &str) -> String {
    format!("wire-{index}-{suffix}")
}

fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<SchedClassifier, ProgramsError> {
    let failed = |source| ProgramsError::Program { step: "load", name, source };
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| ProgramsError::Missing { what: "program", name: name.to_owned() })?;
    let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
    if program.fd().is_err() {
        program.load().map_err(failed)?;
    }
    // One of this module's own: the object goes away.
    let info = program.info().map_err(failed)?;
    SchedClassifier::from_program_info(info, name.into()).map_err(failed)
}

enum TcxError {
    Pin(PinError),
    Program(ProgramError),
}

/// Whether it was there.
fn attach_tcx(end: &mut End, outer: &Link, path: &Path) -> Result<bool, TcxError> {
    if path.exists() {
        match replace(&mut end.program, path) {
            Ok(()) if is_attached(end, outer) => return Ok(true),
            Ok(()) => tracing::debug!(path = %path.display(), "pinned for another interface"),
            // The interface that it was for is gone.
            Err(error) => tracing::debug!(%error, path = %path.display(), "not replaced"),
        }
    }
    let link = attach_first(end, outer).map_err(TcxError::Program)?;
    if !is_attached(end, outer) {
        return Err(TcxError::Program(ProgramError::NotAttached));
    }
    let link: FdLink =
        link.try_into().map_err(|_no_link| TcxError::Program(ProgramError::NotAttached))?;
    unpin(path).map_err(TcxError::Pin)?;
    link.pin(path)
        .map_err(|source| TcxError::Pin(PinError::Link { path: path.to_owned(), source }))?;
    Ok(false)
}

/// Replaces the program of a pinned link.
fn replace(program: &mut SchedClassifier, path: &Path) -> Result<(), ReplaceError> {
    let pinned = FdLink::from(PinnedLink::from_pin(path)?);
    let link = SchedClassifierLink::try_from(pinned)?;
    let id = program.attach_to_link(link)?;
    // The pin holds it.
    program.take_link(id)?;
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum ReplaceError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Whether the interface of that name runs this very program.
fn is_attached(end: &End, outer: &Link) -> bool {
    let own = end.program.info().map(|info| info.id());
    let all = SchedClassifier::query_tcx(&outer.name, end.direction);
    matches!((own, all), (Ok(own), Ok((_revision, all))) if all.iter().any(|one| one.id() == own))
}

/// Kernels without tcx do not know the way of attaching, or its arguments.
fn has_no_tcx(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else { return false };
    matches!(error.io_error.raw_os_error(), Some(libc::EINVAL | libc::E2BIG | libc::EOPNOTSUPP))
}

/// Whether it was there.
fn attach_clsact(
    program: &mut SchedClassifier,
    name: &str,
    direction: TcAttachType,
) -> Result<bool, ProgramError> {
    match tc::qdisc_add_clsact(name) {
        Err(error) if !is_there(&error) => return Err(error.into()),
        _there => {}
    }
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let (id, was_there) =
        match program.attach_with_options(name, direction, TcAttachOptions::Netlink(options)) {
            Ok(id) => (id, false),
            Err(ProgramError::TcError(error)) if is_there(&error) => {
                let there = SchedClassifierLink::attached(name, direction, PRIORITY, HANDLE, None)
                    .map_err(TcError::IoError)?;
                (program.attach_to_link(there)?, true)
            }
            Err(error) => return Err(error),
        };
    // It stays when the gateway goes, as a pinned link would.
    let _stays = ManuallyDrop::new(program.take_link(id)?);
    Ok(was_there)
}

fn is_there(error: &TcError) -> bool {
    match error {
        TcError::AlreadyAttached => true,
        TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        _other => false,
    }
}

fn unpin(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PinError::Path { step: "remove", path: path.to_owned(), source: error })
        }
        _gone => Ok(()),
    }
}
