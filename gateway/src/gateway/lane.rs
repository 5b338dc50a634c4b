//! A workload's way to the processors: how many of its tasks are in the runtime's queue at the same time.
//!
//! The runtime serves tasks in the order in which they become ready. A workload with a thousand ready tasks would make
//! each task of another workload wait for a thousand turns. In a lane, ready tasks wait for each other, in order, and
//! only as many as the runtime has workers stand in its queue: another workload waits for those few turns.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// One workload's lane; clones are the same lane.
#[derive(Clone)]
pub(crate) struct Lane {
    places: Arc<Semaphore>,
}

/// A task that runs only while it has a place in its lane.
struct InLane<F> {
    lane: Lane,
    turn: Turn,
    work: Pin<Box<F>>,
    woken: Arc<Woken>,
    /// What the work is woken by.
    waker: Waker,
}

enum Turn {
    /// Nothing to do until the work is woken.
    None,
    /// There is something to do, and no place to do it.
    Waiting(Waiting),
    /// The work has run. Its place is given to the next one when the runtime comes by again, behind all other tasks that
    /// were ready: that is what lets other workloads in.
    Over(OwnedSemaphorePermit),
}

type Waiting = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// Tells the work's own waking from the lane's.
struct Woken {
    is_due: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_due.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Lane {
    /// A lane in a runtime with as many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(workers.max(1))) }
    }

    /// `work`, in this lane.
    pub(crate) fn run<F>(&self, work: F) -> impl Future<Output = F::Output> + Send + use<F>
    where
        F: Future + Send,
    {
        let woken = Arc::new(Woken { is_due: AtomicBool::new(true), task: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&woken));
        InLane { lane: self.clone(), turn: Turn::None, work: Box::pin(work), woken, waker }
    }
}

impl<F: Future> InLane<F> {
    /// A place, where there is something to do.
    fn poll_place(&mut self, cx: &mut Context<'_>) -> Poll<Option<OwnedSemaphorePermit>> {
        if !matches!(self.turn, Turn::Waiting(_)) {
            if let Turn::Over(place) = std::mem::replace(&mut self.turn, Turn::None) {
                drop(place);
            }
            if !self.woken.is_due.load(Ordering::Acquire) {
                return Poll::Pending;
            }
            let places = Arc::clone(&self.lane.places);
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => return Poll::Ready(Some(place)),
                Err(_none_is_free) => self.turn = Turn::Waiting(Box::pin(places.acquire_owned())),
            }
        }
        let Turn::Waiting(waiting) = &mut self.turn else { return Poll::Pending };
        let place = std::task::ready!(waiting.as_mut().poll(cx));
        self.turn = Turn::None;
        // Nobody closes the semaphore; without a place the work goes on all the same.
        Poll::Ready(place.ok())
    }
}

impl<F: Future> Future for InLane<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.woken.task.register(cx.waker());
        let place = std::task::ready!(this.poll_place(cx));
        this.woken.is_due.store(false, Ordering::Release);
        let polled = this.work.as_mut().poll(&mut Context::from_waker(&this.waker));
        if let (Poll::Pending, Some(place)) = (&polled, place) {
            this.turn = Turn::Over(place);
            cx.waker().wake_by_ref();
        }
        polled
    }
}

/// What the HTTP library starts by itself goes the same way.
impl<F> hyper::rt::Executor<F> for Lane
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, work: F) {
        drop(tokio::spawn(self.run(work)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::sync::mpsc::channel;

    use super::*;

    /// Ready again at once, behind whatever is ready already.
    async fn again() {
        let mut is_again = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut is_again, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn spin(time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    /// A task that always is ready.
    async fn busy(end: Instant) {
        while Instant::now() < end {
            spin(TURN);
            again().await;
        }
    }

    const TURN: Duration = Duration::from_micros(200);

    /// What a message and its answer between two other tasks take, in the middle, beside two hundred busy ones.
    async fn round_trip(flood: Option<&Lane>) -> Duration {
        let end = Instant::now() + Duration::from_secs(30);
        let crowd: Vec<_> = (0..200)
            .map(|_| match flood {
                Some(lane) => tokio::spawn(lane.run(busy(end))),
                None => tokio::spawn(busy(end)),
            })
            .collect();
        let ((ask, mut asked), (answer, mut answered)) = (channel(1), channel(1));
        tokio::spawn(async move {
            while asked.recv().await.is_some() && answer.send(()).await.is_ok() {}
        });
        let asking = tokio::spawn(async move {
            let mut trips = Vec::new();
            for _ in 0..21 {
                let begun = Instant::now();
                ask.send(()).await.unwrap();
                answered.recv().await.unwrap();
                trips.push(begun.elapsed());
            }
            trips.sort_unstable();
            trips[10]
        });
        let median = asking.await.unwrap();
        crowd.iter().for_each(tokio::task::JoinHandle::abort);
        median
    }

    #[tokio::test]
    async fn a_crowd_in_a_lane_costs_other_tasks_a_turn_and_without_one_two_hundred() {
        let with_lane = round_trip(Some(&Lane::new(1))).await;
        let without = round_trip(None).await;
        assert!(without > Duration::from_millis(30), "the control: {without:?}");
        assert!(with_lane * 10 < without, "{with_lane:?} with a lane, {without:?} without");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn everything_in_a_lane_ends_also_when_some_of_it_is_given_up() {
        let lane = Lane::new(4);
        let end = Instant::now() + Duration::from_millis(100);
        let crowd: Vec<_> = (0..100).map(|_| tokio::spawn(lane.run(busy(end)))).collect();
        crowd.iter().step_by(2).for_each(tokio::task::JoinHandle::abort);
        for task in crowd.into_iter().skip(1).step_by(2) {
            tokio::time::timeout(Duration::from_secs(30), task).await.expect("ends").unwrap();
        }
    }
}
