//! Looks at a workload that is served, which take as long as it has processes: beside the daemon's own task, and more
//! than one before anything follows, as an engine's helper has all its rights for a moment before it becomes the
//! command of an `exec`.
//!
//! How long a look takes is up to the workload, whose files may never answer: nobody waits for one without end, and one
//! that does not end has found something wrong.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};

use super::examine::Unfit;

/// Looks in a row that must find something wrong.
pub(super) const LOOKS: u8 = 3;
/// Between the beginnings of two of them, at least.
const APART: Duration = Duration::from_millis(150);

/// How long one may take: several times what the most processes and threads need that are looked at.
const LOOK_MAX: Duration = Duration::from_secs(30);
/// How long the daemon's own task waits for one before a workload is opened: it does nothing else meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// The look at a workload that is to be opened.
#[derive(Default)]
pub(super) struct Admission {
    /// One that has not ended in time, and the network that it was about.
    late: Option<(u64, Receiver<Result<(), Unfit>>)>,
}

impl Admission {
    /// What is wrong with a workload that is to be opened in the network `inode`. Waits for at most [`PATIENCE`], and
    /// not again for a look that has not ended by then: what it finds is said when it is asked for later.
    pub(super) fn ask(
        &mut self,
        inode: u64,
        look: impl FnOnce() -> Result<(), Unfit> + Send + 'static,
    ) -> Result<(), Unfit> {
        if let Some((about, late)) = self.late.take() {
            match late.recv_timeout(Duration::ZERO) {
                Ok(found) if about == inode => return found,
                Ok(_) | Err(RecvTimeoutError::Disconnected) => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.late = Some((about, late));
                    return Err(Unfit::TooLong);
                }
            }
        }
        let (answer, found) = sync_channel(1);
        // A thread of its own: those of the runtime are needed by others, however many do not come back.
        let asked = std::thread::Builder::new().name("tollgate-look".to_owned()).spawn(move || {
            // Whoever asked may be gone.
            drop(answer.send(look()));
        });
        if asked.is_err() {
            return Err(Unfit::BrokenOff);
        }
        match found.recv_timeout(PATIENCE) {
            Ok(found) => found,
            Err(RecvTimeoutError::Disconnected) => Err(Unfit::BrokenOff),
            Err(RecvTimeoutError::Timeout) => {
                self.late = Some((inode, found));
                Err(Unfit::TooLong)
            }
        }
    }
}

/// The looks at one workload that is served.
#[derive(Default)]
pub(super) struct Scrutiny {
    look: Option<Look>,
    /// How many in a row have found something wrong.
    unfit: u8,
}

struct Look {
    began: Instant,
    /// None once its result is known.
    running: Option<JoinHandle<Result<(), Unfit>>>,
}

impl Scrutiny {
    /// Begins a look, unless one is on its way. Must be called inside a tokio runtime.
    pub(super) fn begin(&mut self, look: impl FnOnce() -> Result<(), Unfit> + Send + 'static) {
        if self.look.as_ref().is_none_or(|look| look.running.is_none()) {
            let running = Some(spawn_blocking(look));
            self.look = Some(Look { began: Instant::now(), running });
        }
    }

    /// What is wrong with the workload, once enough looks in a row have found something; begins the next of them.
    /// Waits for nothing.
    pub(super) async fn verdict(
        &mut self,
        look: impl FnOnce() -> Result<(), Unfit> + Send + 'static,
    ) -> Result<(), Unfit> {
        let Some(last) = &mut self.look else { return Ok(()) };
        let is_running = last.running.as_ref().is_some_and(|running| !running.is_finished());
        if is_running && last.began.elapsed() > LOOK_MAX {
            *self = Self::default();
            return Err(Unfit::TooLong);
        }
        if let Some(ended) = last.running.take_if(|running| running.is_finished()) {
            match ended.await.unwrap_or(Err(Unfit::BrokenOff)) {
                Ok(()) => self.unfit = 0,
                Err(unfit) => {
                    self.unfit += 1;
                    if self.unfit >= LOOKS {
                        *self = Self::default();
                        return Err(unfit);
                    }
                }
            }
        }
        if self.unfit > 0 && last.running.is_none() && last.began.elapsed() >= APART {
            self.begin(look);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Which looks find something wrong, and after how many it is believed; none where it never is.
    async fn believed_after(is_unfit: &'static [bool]) -> Option<usize> {
        let looks = Arc::new(AtomicUsize::new(0));
        let next = || {
            let looks = Arc::clone(&looks);
            move || match is_unfit.get(looks.fetch_add(1, Ordering::SeqCst)) {
                Some(true) => Err(Unfit::TooMany),
                _fit => Ok(()),
            }
        };
        let mut scrutiny = Scrutiny::default();
        while looks.load(Ordering::SeqCst) <= is_unfit.len() {
            if scrutiny.unfit == 0 {
                scrutiny.begin(next());
            }
            if scrutiny.verdict(next()).await.is_err() {
                return Some(looks.load(Ordering::SeqCst));
            }
            tokio::task::yield_now().await;
        }
        None
    }

    #[tokio::test]
    async fn what_is_there_for_one_or_two_looks_is_not_believed_and_what_stays_is() {
        assert_eq!(believed_after(&[true, false, false]).await, None);
        assert_eq!(believed_after(&[true, true, false, true, true, false]).await, None);
        assert_eq!(believed_after(&[true, true, true]).await, Some(3));
        assert_eq!(believed_after(&[false, true, true, true]).await, Some(4));
    }

    #[tokio::test]
    async fn looks_that_follow_a_finding_are_apart() {
        let began = Instant::now();
        assert_eq!(believed_after(&[true, true, true]).await, Some(3));
        assert!(began.elapsed() >= APART * 2);
    }

    #[test]
    fn a_look_that_does_not_end_admits_nobody_and_is_waited_for_once() {
        let mut admission = Admission::default();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let began = Instant::now();
        let found = admission.ask(7, move || {
            ended.recv().unwrap_err();
            Ok(())
        });
        assert!(matches!(found, Err(Unfit::TooLong)), "{found:?}");
        assert!(began.elapsed() >= PATIENCE);
        let again = Instant::now();
        for _ in 0..100 {
            let found = admission.ask(7, || Ok(()));
            assert!(matches!(found, Err(Unfit::TooLong)), "{found:?}");
        }
        assert!(again.elapsed() < PATIENCE, "it is not waited for again");
        drop(end);
        // What it has found counts for the network that it was about, and is asked for once.
        while admission.late.is_some() {
            match admission.ask(8, || Err(Unfit::TooMany)) {
                Err(Unfit::TooLong) => std::thread::yield_now(),
                found => assert!(matches!(found, Err(Unfit::TooMany)), "{found:?}"),
            }
        }
        assert!(admission.ask(7, || Ok(())).is_ok(), "the control");
    }

    #[tokio::test]
    async fn a_look_at_a_served_workload_that_does_not_end_is_a_finding() {
        let mut scrutiny = Scrutiny::default();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let never = move || {
            ended.recv().unwrap_err();
            Ok(())
        };
        scrutiny.begin(never);
        assert!(scrutiny.verdict(|| Ok(())).await.is_ok(), "the control");
        if let Some(look) = &mut scrutiny.look {
            look.began = Instant::now().checked_sub(LOOK_MAX * 2).unwrap();
        }
        let found = scrutiny.verdict(|| Ok(())).await;
        assert!(matches!(found, Err(Unfit::TooLong)), "{found:?}");
        drop(end);
    }

    #[tokio::test]
    async fn a_look_that_breaks_off_counts_as_a_finding() {
        let mut scrutiny = Scrutiny::default();
        let breaks = || -> Result<(), Unfit> { panic!("as if something had gone wrong") };
        scrutiny.begin(breaks);
        let unfit = loop {
            match scrutiny.verdict(breaks).await {
                Ok(()) => tokio::task::yield_now().await,
                Err(unfit) => break unfit,
            }
        };
        assert!(matches!(unfit, Unfit::BrokenOff));
    }
}
