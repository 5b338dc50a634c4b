//! The thread that keeps a workload's wires fenced.

use std::io::{self, PipeWriter};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{Census, Fence, WireError, WireEvent, chain};
use crate::capture::{Fenced, Monitor};

/// The wires of a workload that is served. Dropping it ends the watch; the fence stays.
pub struct Wires {
    events: Receiver<WireEvent>,
    lost: Arc<AtomicU64>,
    census: Arc<Census>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<Fence>>,
}

/// Events that wait to be audited; of more, only the number is told.
const EVENTS_MAX: usize = 64;
/// How often the wires are looked at without a reason.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The same after a failure.
const RETRY_AFTER: Duration = Duration::from_millis(200);

impl Fence {
    /// Watches the wires from now on: of the workload that is armed, or with nothing open without one.
    pub(in crate::capture) fn watch(
        mut self,
        netns_cookie: Option<u64>,
        mut before: Vec<WireEvent>,
    ) -> Result<Wires, WireError> {
        self.netns_cookie = netns_cookie;
        if netns_cookie.is_some() && self.unfenceable.is_empty() {
            self.restore(&mut before)?;
        } else {
            // Before it was armed there was nothing to disarm.
            self.cut()?;
        }
        let monitors = [Monitor::of(&self.workload)?, Monitor::here()?];
        let (sender, events) = channel(EVENTS_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let census = Arc::clone(&self.census);
        let mut teller = Teller { sender, lost: Arc::clone(&lost), has_failed: false };
        teller.tell(before);
        let (stopped, stop) = io::pipe().map_err(WireError::Watch)?;
        let thread = std::thread::Builder::new()
            .name("tollgate-wires".to_owned())
            .spawn(move || {
                come_first();
                self.keep(&monitors, &stopped, &mut teller);
                self
            })
            .map_err(WireError::Watch)?;
        Ok(Wires { events, lost, census, stop: Some(stop), thread: Some(thread) })
    }

    fn keep(&mut self, monitors: &[Monitor; 2], stopped: &io::PipeReader, teller: &mut Teller) {
        let [inside, outside] = monitors;
        let mut pace = Pace::default();
        loop {
            let is_well = self.look_once(monitors, teller);
            pace.keep();
            let patience = if is_well { LOOK_EVERY } else { RETRY_AFTER };
            let mut waiting = [
                PollFd::new(inside.as_fd(), PollFlags::POLLIN),
                PollFd::new(outside.as_fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
            if let Err(errno) = poll(&mut waiting, timeout)
                && errno != nix::errno::Errno::EINTR
            {
                teller.fail(format!("cannot wait for changes: {errno}"));
            }
            let [_, _, end] = &waiting;
            if end.revents().is_some_and(|events| !events.is_empty()) {
                return;
            }
        }
    }

    /// Whether the wires are as they should be.
    fn look_once(&mut self, monitors: &[Monitor; 2], teller: &mut Teller) -> bool {
        let mut events = Vec::new();
        // Emptied before the look: what changes during it is told again.
        let drained = monitors.iter().try_for_each(|monitor| monitor.drain().map(drop));
        let looked = drained.map_err(WireError::Watch).and_then(|()| self.sync(&mut events));
        teller.tell(events);
        match looked {
            Ok(()) => {
                teller.has_failed = false;
                true
            }
            Err(error) => {
                let mut why = chain(&error);
                if let Err(error) = self.cut() {
                    why = format!("{why}; nor can everything be refused: {}", chain(&error));
                }
                teller.fail(why);
                false
            }
        }
    }
}

impl Wires {
    /// How many there are.
    #[must_use]
    pub fn census(&self) -> &Census {
        &self.census
    }

    /// The next event and how many were lost before it; none when the watch has ended.
    pub async fn next(&mut self) -> Option<(WireEvent, u64)> {
        let event = self.events.recv().await?;
        Some((event, self.lost.swap(0, Ordering::Relaxed)))
    }

    /// Splits off the events, so that another task can wait for them.
    #[must_use]
    pub fn take_events(&mut self) -> Self {
        let (_closed, nothing) = channel(1);
        let events = std::mem::replace(&mut self.events, nothing);
        let (lost, census) = (Arc::clone(&self.lost), Arc::clone(&self.census));
        Self { events, lost, census, stop: None, thread: None }
    }

    /// Ends the watch and takes off what does not go with the pins: the workload is gone, or is let go.
    pub fn release(mut self) {
        if let Some(fence) = self.end() {
            for wire in fence.fenced.values() {
                fence.programs.take_off(&wire.outer);
            }
        }
    }

    /// Ends the watch. What is fenced stays so, and the gate closes what comes as long as this is kept.
    #[must_use]
    pub fn rest(mut self) -> Option<Fenced> {
        self.end().map(|fence| Fenced { fence, events: Vec::new() })
    }

    fn end(&mut self) -> Option<Fence> {
        drop(self.stop.take());
        self.thread.take().and_then(|thread| thread.join().ok())
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        let _fence = self.end();
    }
}

struct Teller {
    sender: Sender<WireEvent>,
    lost: Arc<AtomicU64>,
    has_failed: bool,
}

impl Teller {
    fn tell(&self, events: Vec<WireEvent>) {
        for event in events {
            if self.sender.try_send(event).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Once, until it is well again.
    fn fail(&mut self, why: String) {
        if !std::mem::replace(&mut self.has_failed, true) {
            self.tell(vec![WireEvent::Failed(why)]);
        }
    }
}

/// A limit on how often a thread looks that runs before all others: who makes it look must not get the machine.
#[derive(Default)]
pub(super) struct Pace {
    since: Option<Instant>,
    looks: u32,
}

/// More than engines make.
const LOOKS_PER_SECOND: u32 = 200;
/// What each further look in that second waits.
const REST: Duration = Duration::from_millis(20);

impl Pace {
    pub(super) fn keep(&mut self) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= Duration::from_secs(1) {
            *self = Self::default();
        }
        self.looks += 1;
        if self.looks > LOOKS_PER_SECOND {
            std::thread::park_timeout(REST);
        }
    }
}

/// Runs before every ordinary task: an interface that appears is fenced before it is set up, on a busy machine too.
/// Best effort: the container of a daemon may not let it.
#[expect(unsafe_code, reason = "no safe crate here sets a thread's scheduling")]
pub(super) fn come_first() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread, and the parameter lives across the call, which only reads it.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "interfaces are watched at ordinary priority");
    }
}
