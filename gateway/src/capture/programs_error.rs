//! What is wrong with the kernel programs, in words that say what to do.

use std::io;
use std::path::PathBuf;

use aya::programs::ProgramError;

use super::{CgroupError, PinError};

/// The programs cannot be loaded, attached or armed.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// The binary was built without the kernel object.
    #[error("this binary was built without its kernel programs; build it with `cargo xtask build`")]
    NotBuilt,
    /// The kernel refuses the object as a whole (maps, BTF).
    #[error("the kernel refuses Tollgate's BPF object")]
    Load(#[source] aya::EbpfError),
    /// The object does not hold what it should: a build of another version.
    #[error("the BPF object has no {what} `{name}`; rebuild with `cargo xtask build`")]
    Missing {
        /// `program` or `map`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The kernel refuses one program, or its attachment.
    #[error("the kernel refuses to {step} the program `{name}`")]
    Program {
        /// `load` or `attach`.
        step: &'static str,
        /// The program.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: ProgramError,
    },
    /// A link cannot be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Tollgate's slice cannot be made.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A map cannot be used.
    #[error("the BPF map `{name}` cannot be used")]
    Map {
        /// The map.
        name: String,
        /// What the kernel said.
        #[source]
        source: aya::maps::MapError,
    },
    /// What is pinned was made by a build with other maps under the same version number.
    #[error(
        "the map pinned at {} has another layout than this version's; end the workload, remove the directory, and start it again",
        path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
    },
    /// The kernel does not say what is attached, or does not exchange a program.
    #[error("cannot {step} (`{name}`)")]
    Link {
        /// What was tried.
        step: &'static str,
        /// The program.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A pinned link is not what its place says.
    #[error(
        "the link pinned at {} belongs to another cgroup or hook; remove it if nobody needs it",
        path.display()
    )]
    ForeignLink {
        /// The pin.
        path: PathBuf,
    },
    /// Programs of Tollgate already work for this cgroup or below it: two redirects would refuse each other's traffic.
    #[error(
        "{} is governed by Tollgate already, by another daemon, run or match; two that govern the same sockets refuse everything",
        path.display()
    )]
    Doubled {
        /// The cgroup where they are attached, or whose sockets they see.
        path: PathBuf,
    },
    /// Somebody attached a program that allows none beside it.
    #[error(
        "{} has a program on the hook of `{name}` that allows no other beside it; attach that one with the flag `multi`",
        path.display()
    )]
    Exclusive {
        /// The cgroup with that program.
        path: PathBuf,
        /// Our program.
        name: &'static str,
    },
    /// What was attached is not at work.
    #[error("the program `{name}` is not at work: {what}")]
    NotAtWork {
        /// The program.
        name: String,
        /// What was found instead.
        what: &'static str,
    },
}
