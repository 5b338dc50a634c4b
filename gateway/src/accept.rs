//! kernel → [`Accepted`]: a connection with its original destination, or none at all.
//!
//! A connection that the kernel has no record of is reset: there is no default destination.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::audit::{Kind, Process, Reason};
use crate::capture::{FlowTable, Listeners};
use crate::dns::Server;
use crate::gateway::quota::Share;
use crate::gateway::{Exhausted, Lifecycle, Stages};
use crate::http::{ConnectionRecord, Target, serve_stream};
use crate::net::{ClientAddr, OriginalDst};

/// A connection whose destination the kernel recorded.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Its other end.
    pub client: ClientAddr,
    /// Who made it.
    pub process: Process,
    /// Where it was made to.
    pub original_dst: OriginalDst,
}

/// What accepting needs.
struct Acceptor {
    stages: Arc<Stages>,
    dns: Arc<Server>,
    flows: Arc<dyn FlowTable>,
}

/// Starts serving `listeners`.
pub(crate) fn start(
    stages: &Arc<Stages>,
    dns: &Arc<Server>,
    listeners: Listeners,
    flows: Arc<dyn FlowTable>,
) -> io::Result<()> {
    let Listeners { tcp, udp, ipv6: _ } = listeners;
    let tcp = tcp.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>()?;
    let udp = udp.into_iter().map(UdpSocket::from_std).collect::<io::Result<Vec<_>>>()?;
    let acceptor = Arc::new(Acceptor { stages: Arc::clone(stages), dns: Arc::clone(dns), flows });
    for listener in tcp {
        let lifecycle = &stages.lifecycle;
        let accepting = Arc::clone(&acceptor).accept_all(listener);
        let accepting = until(lifecycle.draining.clone().cancelled_owned(), accepting);
        lifecycle.tasks.spawn(stages.quota.lane.run(accepting));
    }
    stages.lifecycle.tasks.spawn(settle(Arc::clone(stages)));
    for socket in udp {
        let lifecycle = &stages.lifecycle;
        let answering = Arc::clone(dns).serve_udp(socket);
        let answering = until(lifecycle.draining.clone().cancelled_owned(), answering);
        lifecycle.tasks.spawn(stages.quota.lane.run(answering));
    }
    Ok(())
}

/// Says every second how many refusals were only counted.
async fn settle(stages: Arc<Stages>) {
    let settling = async {
        loop {
            sleep(SETTLE_EVERY).await;
            stages.audit.settle();
        }
    };
    until(stages.lifecycle.draining.cancelled(), settling).await;
}

/// Runs `work` to its end, or until `end`.
async fn until(end: impl Future<Output = ()>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = end => {}
        () = work => {}
    }
}

impl Acceptor {
    async fn accept_all(self: Arc<Self>, listener: TcpListener) {
        let mut back_off = BACK_OFF_MIN;
        loop {
            match listener.accept().await {
                Ok((stream, client)) => {
                    back_off = BACK_OFF_MIN;
                    match self.stages.quota.connection() {
                        Ok(share) => self.spawn(stream, ClientAddr(client), share),
                        Err(exhausted) => self.refuse(stream, ClientAddr(client), exhausted),
                    }
                    // A flood of them must not keep what else this workload has, or another one, from its turn.
                    yield_now().await;
                }
                // Out of descriptors, or the peer was faster: neither gets better by trying at once.
                Err(error) => {
                    tracing::warn!(%error, agent = %self.stages.agent.name, "cannot accept");
                    sleep(back_off).await;
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                }
            }
        }
    }

    fn spawn(self: &Arc<Self>, stream: TcpStream, client: ClientAddr, share: Share) {
        let this = Arc::clone(self);
        let Lifecycle { killed, tasks, .. } = self.stages.lifecycle.clone();
        let counted = self.stages.agent.tally.connection();
        tasks.spawn(self.stages.quota.lane.run(async move {
            until(killed.cancelled(), this.serve(stream, client)).await;
            drop((share, counted));
        }));
    }

    /// Resets a connection for which the workload has no share left. Its record in the kernel is taken all the same:
    /// it would take the place of another's.
    fn refuse(&self, stream: TcpStream, client: ClientAddr, exhausted: Exhausted) {
        let Some(Accepted { stream, process, original_dst, .. }) = self.recognise(stream, client)
        else {
            return;
        };
        let stages = &self.stages;
        let mut record = stages.audit.open(Kind::Connection, &stages.agent, exhausted.reason());
        record.process = Some(process);
        record.host = Some(stages.host_at(original_dst.0.ip()).to_string());
        record.port = Some(original_dst.0.port());
        record.detail = Some(exhausted.to_string());
        reset(&stream);
    }

    async fn serve(&self, stream: TcpStream, client: ClientAddr) {
        let Some(accepted) = self.recognise(stream, client) else { return };
        let Accepted { stream, process, original_dst, .. } = accepted;
        bound_buffers(&stream);
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "small writes may be delayed");
        }
        if original_dst.0.port() == DNS_PORT {
            Arc::clone(&self.dns).serve_tcp(stream).await;
            return;
        }
        let target = Target {
            host: self.stages.host_at(original_dst.0.ip()),
            port: original_dst.0.port(),
            in_tunnel: false,
        };
        let mut record =
            self.stages.audit.open(Kind::Connection, &self.stages.agent, Reason::ClientClosed);
        record.process = Some(process.clone());
        let record = ConnectionRecord::new(record);
        record.set_target(&target);
        serve_stream(Arc::clone(&self.stages), target, process, record, stream).await;
    }

    /// The kernel's record of the connection, which is there once. Without one the connection is reset.
    fn recognise(&self, stream: TcpStream, client: ClientAddr) -> Option<Accepted> {
        let Some(flow) = self.flows.take(client) else {
            let mut record =
                self.stages.audit.open(Kind::Connection, &self.stages.agent, Reason::NoFlowRecord);
            record.detail = Some(format!("from {}", client.0));
            reset(&stream);
            return None;
        };
        if flow.cgroup_id != self.stages.agent.cgroup_id {
            // A nested cgroup of the workload; the listener is the identity.
            tracing::debug!(cgroup = flow.cgroup_id, "the connection came from another cgroup");
        }
        let (process, original_dst) = (flow.process, flow.original_dst);
        Some(Accepted { stream, client, process, original_dst })
    }
}

/// Lets the end of `stream` be a reset, so that nobody takes it for an answer.
fn reset(stream: &TcpStream) {
    // A lingering time of zero makes the kernel send RST instead of FIN.
    if let Err(error) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a refused connection is closed, not reset");
    }
}

/// Bounds what the kernel holds of a connection in both directions, whatever it would allow: an agent that does not
/// read, or whose upload waits, would otherwise fill the memory that the sockets of all workloads share.
fn bound_buffers(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    for result in
        [socket.set_recv_buffer_size(SOCKET_BYTES), socket.set_send_buffer_size(SOCKET_BYTES)]
    {
        if let Err(error) = result {
            tracing::debug!(%error, "the kernel's buffers of a connection are not bounded");
        }
    }
}

const DNS_PORT: u16 = 53;
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// In each direction; the kernel takes twice as much for its own book-keeping. The way is the machine's own memory.
const SOCKET_BYTES: usize = 256 * 1024;
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
