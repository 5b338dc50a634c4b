//! The three passes: nothing armed, sockets only, everything.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::attempt::{GATEWAY_PORT, Reached};
use super::gateway::Gateway;
use super::mark::Mark;
use super::row::{ROWS, Row};
use super::scratch::{INTERFACE, Scratch};
use super::tap::Tap;
use super::{Arming, child};
use crate::capture::{Captured, Pins};

/// The control: nothing is armed, and the gateway is one that nothing protects.
pub(super) const CONTROL: usize = 0;
/// The cgroup programs alone.
pub(super) const SOCKETS: usize = 1;
/// The wire fence as well.
pub(super) const ALL: usize = 2;
pub(super) const PASSES: usize = 3;

/// What was observed of one attempt in one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// How far the child says it got.
    pub(super) reached: Reached,
    /// Whether the gateway would have served a connection of it.
    pub(super) is_served: bool,
    /// Frames of it at the outer end of the wire, before the place of the fence.
    pub(super) at_the_fence: usize,
    /// Frames behind that place.
    pub(super) outside: usize,
}

/// What was observed of all.
#[derive(Debug)]
pub(super) struct Observed {
    /// Every row that was attempted, and what was seen in each pass.
    pub(super) rows: Vec<(&'static Row, [Seen; PASSES])>,
    /// Frames that nobody has marked and that passed everything.
    pub(super) unmarked: usize,
}

/// How long nothing may happen until a pass is over; frames that the kernel sends by itself come after a few ticks.
const QUIET: Duration = Duration::from_millis(120);
/// How long a pass may go on after its last attempt; the kernel repeats membership reports for a second.
const SETTLE_MAX: Duration = Duration::from_millis(1500);

struct Passes<'a> {
    program: &'a Path,
    scratch: &'a Scratch,
    rows: Vec<(usize, &'static Row)>,
    is_interrupted: &'a (dyn Fn() -> bool + Sync),
    tap: Tap,
    served: BTreeSet<Mark>,
}

/// Makes all passes. The calling thread is in the workload's namespace.
pub(super) fn observe(
    program: &Path,
    scratch: &Scratch,
    arming: &dyn Arming,
    is_quick: bool,
    is_interrupted: &(dyn Fn() -> bool + Sync),
) -> anyhow::Result<Observed> {
    let rows = ROWS.iter().enumerate().filter(|(_, row)| row.is_quick || !is_quick).collect();
    let tap = Tap::open(&scratch.outside)?;
    let served = BTreeSet::new();
    let mut passes = Passes { program, scratch, rows, is_interrupted, tap, served };
    passes.tap.prove(nix::net::if_::if_nametoindex(INTERFACE)?)?;

    let mut unprotected = Gateway::unprotected(GATEWAY_PORT, scratch.has_ipv6)?;
    let control = passes.pass(CONTROL, &mut unprotected)?;
    drop(unprotected);
    let (sockets, _) =
        passes.armed(SOCKETS, |pins| Ok((arming.arm_sockets(scratch, pins)?, Box::new(()))))?;
    let (all, unmarked) = passes.armed(ALL, |pins| arming.arm_all(scratch, pins))?;
    Ok(Observed { rows: passes.seen([control, sockets, all]), unmarked })
}

impl Passes<'_> {
    /// A pass with rules, and how many frames that nobody has marked got out in it.
    fn armed(
        &mut self,
        pass: usize,
        arm: impl FnOnce(&Pins) -> anyhow::Result<(Captured, Box<dyn Send>)>,
    ) -> anyhow::Result<(Vec<Reached>, usize)> {
        let pins = self.scratch.make_pins()?;
        let (captured, wire) = arm(&pins)?;
        self.tap.drain()?;
        let before = self.tap.passed.unmarked;
        let reached = self.pass(pass, &mut Gateway::captured(captured))?;
        let unmarked = self.tap.passed.unmarked - before;
        drop(wire);
        pins.remove()?;
        Ok((reached, unmarked))
    }

    fn pass(&mut self, pass: usize, gateway: &mut Gateway) -> anyhow::Result<Vec<Reached>> {
        let mut reached = Vec::with_capacity(self.rows.len());
        for (number, row) in self.rows.clone() {
            if (self.is_interrupted)() {
                anyhow::bail!("interrupted");
            }
            let mark = mark_of(pass, number)?;
            reached.push(child::run(self.program, self.scratch, row, mark)?);
            gateway.serve()?;
            self.tap.drain()?;
        }
        self.settle(gateway)?;
        self.served.extend(&gateway.served);
        Ok(reached)
    }

    /// Until nothing happens any more.
    fn settle(&mut self, gateway: &mut Gateway) -> anyhow::Result<()> {
        let end = Instant::now() + SETTLE_MAX;
        while Instant::now() < end {
            let mut fds: Vec<PollFd<'_>> = self
                .tap
                .fds()
                .chain(gateway.fds())
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            match poll(&mut fds, PollTimeout::try_from(QUIET).unwrap_or(PollTimeout::ZERO)) {
                Ok(0) => break,
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            drop(fds);
            gateway.serve()?;
            self.tap.drain()?;
        }
        Ok(())
    }

    /// Late frames count where they were sent, so all is counted at the end.
    fn seen(&self, reached: [Vec<Reached>; PASSES]) -> Vec<(&'static Row, [Seen; PASSES])> {
        let mut reached = reached.map(Vec::into_iter);
        let mut rows = Vec::with_capacity(self.rows.len());
        for (number, row) in &self.rows {
            let [control, sockets, all] = &mut reached;
            let (Some(control), Some(sockets), Some(all)) =
                (control.next(), sockets.next(), all.next())
            else {
                break;
            };
            let seen = |pass: usize, reached: Reached| {
                let mark = Mark::of(pass, *number);
                Seen {
                    reached,
                    is_served: mark.is_some_and(|mark| self.served.contains(&mark)),
                    at_the_fence: mark.map_or(0, |mark| self.tap.reached.of(mark)),
                    outside: mark.map_or(0, |mark| self.tap.passed.of(mark)),
                }
            };
            rows.push((*row, [seen(CONTROL, control), seen(SOCKETS, sockets), seen(ALL, all)]));
        }
        rows
    }
}

fn mark_of(pass: usize, row: usize) -> anyhow::Result<Mark> {
    Mark::of(pass, row).ok_or_else(|| anyhow::anyhow!("more attempts than marks"))
}
