//! A namespace and the thread that lives in it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

type Job = Box<dyn FnOnce() + Send>;

/// Namespaces without a name, and the one thread that runs in them. They end with it.
pub(crate) struct Place {
    jobs: Option<UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Where its network namespace can be named from outside.
    pub(crate) network: PathBuf,
}

impl Place {
    /// Makes new namespaces of the kinds `what`.
    pub(crate) fn new(name: &str, what: CloneFlags) -> Self {
        let (jobs, mut queue) = unbounded_channel::<Job>();
        let (ready, thread_id) = mpsc::channel();
        let live = move || {
            unshare(what).expect("namespaces can be made");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            ready.send(nix::unistd::gettid()).unwrap();
            runtime.block_on(async {
                while let Some(job) = queue.recv().await {
                    job();
                }
            });
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(live).unwrap();
        let thread_id = thread_id.recv().expect("the namespaces are made");
        let network = format!("/proc/{}/task/{thread_id}/ns/net", std::process::id()).into();
        Self { jobs: Some(jobs), thread: Some(thread), network }
    }

    /// Runs `work` there, inside a tokio runtime whose tasks live as long as the place.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, wait) = mpsc::channel();
        let job = Box::new(move || {
            let outcome = catch_unwind(AssertUnwindSafe(work));
            answer.send(outcome).expect("somebody waits");
        });
        self.jobs.as_ref().unwrap().send(job).expect("the thread lives");
        wait.recv().expect("the thread answers").unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread of a namespace has panicked");
        }
    }
}
