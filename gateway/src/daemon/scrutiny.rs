//! Looks at a workload that is served, which take as long as it has processes: beside the daemon's own task, and more
//! than one before anything follows, as an engine's helper has all its rights for a moment before it becomes the
//! command of an `exec`.

use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};

use super::examine::Unfit;

/// Looks in a row that must find something wrong.
pub(super) const LOOKS: u8 = 3;
/// Between the beginnings of two of them, at least.
const APART: Duration = Duration::from_millis(150);

/// The looks at one workload.
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
