//! `tollgate doctor`: whether this kernel closes every way out, tried and counted; and what is wrong with this host.
//!
//! ```text
//! scratch cgroup, two namespaces, one wire ── attempts ── tap
//!   pass 0: nothing armed      every attempt must be seen: the control
//!   pass 1: cgroup programs    only what they cannot see is left
//!   pass 2: wire fence too     nothing
//! ```
//!
//! Each attempt is a process of its own in the scratch cgroup, with the rights that its row names. The namespaces have
//! no route out, and everything is gone when this returns; what a killed doctor leaves is swept by the next.
//!
//! What it does not do: prove anything about a workload. It says what the kernel does when the rules are armed as for
//! a workload.

mod attempt;
mod child;
mod gateway;
mod host;
mod mark;
mod passes;
mod report;
mod row;
mod scratch;
mod tap;
mod verdict;

use std::path::Path;
use std::time::Instant;

pub use attempt::{Order, attempt};
pub use host::{Feature, Host, Problem, Severity};
pub use report::{Report, RowReport};
pub use row::Rights;
pub use scratch::Scratch;
pub use verdict::Verdict;

use crate::capture::{self, Attachment, Captured, Closed, Gate, Pins, Way};
use crate::net::Openings;

/// How a scratch workload is armed: for the product, as every workload is.
pub trait Arming: Sync {
    /// Attaches the programs to the scratch cgroup and opens the listeners; the wire stays open.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn arm_sockets(&self, scratch: &Scratch, pins: &Pins) -> anyhow::Result<Captured>;

    /// The same, with the wire closed before, as long as the second value lives.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn arm_all(&self, scratch: &Scratch, pins: &Pins) -> anyhow::Result<(Captured, Box<dyn Send>)>;
}

/// As every workload is armed.
#[derive(Debug, Clone, Copy)]
pub struct AsInProduction;

impl AsInProduction {
    /// Arms everything, with the wire fence attached in this way.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn arm_all_by(
        self,
        how: Attachment,
        scratch: &Scratch,
        pins: &Pins,
    ) -> anyhow::Result<(Captured, Box<dyn Send>)> {
        let Scratch { cgroup, agent, outside, port, .. } = scratch;
        let mut closed = Closed::close(cgroup, pins, 0)?;
        // What is outside is the host of the scratch workload: the fence stands at its end of the wire.
        let openings = Openings::default();
        let (gate, fenced) = outside.run(|| -> anyhow::Result<_> {
            let gate = Gate::open(how)?;
            let fenced = closed.fence(agent, pins, &openings, &gate)?;
            Ok((gate, fenced))
        })?;
        let captured = closed.open(agent, Way::by(*port))?;
        let cookie = captured.netns_cookie;
        let wires = outside.run(|| -> anyhow::Result<_> { Ok(fenced.watch(cookie)?) })?;
        Ok((captured, Box::new((wires, gate))))
    }
}

impl Arming for AsInProduction {
    fn arm_sockets(&self, scratch: &Scratch, pins: &Pins) -> anyhow::Result<Captured> {
        let way = Way::by(scratch.port);
        Ok(capture::capture(&scratch.cgroup, &scratch.agent, pins, way, 0)?)
    }

    fn arm_all(&self, scratch: &Scratch, pins: &Pins) -> anyhow::Result<(Captured, Box<dyn Send>)> {
        self.arm_all_by(Attachment::Probed, scratch, pins)
    }
}

/// How much is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Every row.
    Full,
    /// One row for each layer.
    Quick,
}

/// A conformance run.
#[expect(missing_debug_implementations, reason = "holds a function")]
pub struct Request<'a> {
    /// The binary that makes the attempts: Tollgate's own.
    pub program: &'a Path,
    /// How the scratch workload is armed.
    pub arming: &'a dyn Arming,
    /// How much is tried.
    pub form: Form,
    /// Whether to stop before the next attempt.
    pub is_interrupted: &'a (dyn Fn() -> bool + Sync),
}

/// Tries every way out of a scratch workload.
///
/// # Errors
/// When it cannot be tried: then nothing is known. Nothing is left behind in either case.
pub fn conformance(request: &Request<'_>) -> anyhow::Result<Report> {
    let started = Instant::now();
    let Request { program, arming, form, is_interrupted } = *request;
    let scratch = Scratch::build()?;
    let observed = scratch
        .agent
        .run(|| passes::observe(program, &scratch, arming, form == Form::Quick, is_interrupted));
    scratch.remove();
    Ok(Report::new(&observed?, form, started.elapsed()))
}

/// The quick form, as the daemon runs it at its start.
///
/// # Errors
/// When it cannot be tried.
pub fn quick() -> anyhow::Result<Report> {
    conformance(&Request {
        program: Path::new(OWN_PROGRAM),
        arming: &AsInProduction,
        form: Form::Quick,
        is_interrupted: &|| false,
    })
}

/// Refuses a kernel that does not hold what Tollgate promises, by the quick form.
///
/// # Errors
/// When a way is open, unless `accept_weak` says that this is known: then what is open is logged. When it cannot be
/// tried, always: then nothing could be governed either.
pub fn at_start(accept_weak: bool) -> anyhow::Result<()> {
    let mut report = quick()?;
    if !report.passes() {
        // On a machine that is busy enough, a frame can be late for its pass; what is open stays open.
        report = quick()?;
    }
    let failures = report.failures();
    if failures.is_empty() {
        tracing::info!(took = ?report.took(), "this kernel closes what was tried");
        return Ok(());
    }
    if !accept_weak {
        anyhow::bail!(
            "this kernel does not hold workloads ({}); see `tollgate doctor`, or go on all the same with --accept-weak",
            failures.join("; ")
        );
    }
    for failure in failures {
        tracing::warn!("accepted: {failure}");
    }
    Ok(())
}

/// The running binary.
pub const OWN_PROGRAM: &str = "/proc/self/exe";
