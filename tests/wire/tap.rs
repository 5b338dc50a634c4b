//! Every frame that a machine gets, whole.

use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// How the hardware addresses of workloads' interfaces begin.
pub(crate) const WORKLOAD: [u8; 2] = [0x02, 0x77];

/// All frames on all interfaces of one namespace.
pub(crate) struct Tap {
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Every Ethernet protocol (`ETH_P_ALL`), in network byte order as packet(7) wants it.
const EVERY_PROTOCOL: i32 = 0x0003_u16.to_be() as i32;
/// More than this is an answer too.
const FRAMES_MAX: usize = 100_000;

impl Tap {
    /// Opens the packet socket in the calling thread's namespace and reads it on a thread of its own.
    pub(crate) fn here() -> Self {
        let mut socket =
            Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL))).unwrap();
        socket.set_recv_buffer_size(8 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (sink, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 256];
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = socket.read(&mut bytes) else { continue };
                let mut seen = sink.lock().unwrap();
                if seen.len() < FRAMES_MAX {
                    seen.push(bytes[..length.min(bytes.len())].to_vec());
                }
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// How many frames so far are as `matches` says.
    pub(crate) fn count(&self, matches: impl Fn(&[u8]) -> bool) -> usize {
        self.seen.lock().unwrap().iter().filter(|frame| matches(frame)).count()
    }

    /// Frames so far that a workload sent.
    pub(crate) fn workloads(&self) -> Vec<Vec<u8>> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|frame| frame.get(6..8) == Some(&WORKLOAD)).cloned().collect()
    }

    pub(crate) fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread that reads frames has panicked");
        }
    }
}
