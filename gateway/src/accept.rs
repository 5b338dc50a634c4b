//! kernel → [`Accepted`]: a connection with its original destination, or none at all.
//!
//! A connection that the kernel has no record of is reset: there is no default destination.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::audit::{Kind, Process, Reason};
use crate::capture::{FlowTable, Listeners};
use crate::dns::Server;
use crate::gateway::{Lifecycle, Stages};
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
    permits: Arc<Semaphore>,
}

/// Starts serving `listeners`.
pub(crate) fn start(
    stages: &Arc<Stages>,
    dns: &Arc<Server>,
    listeners: Listeners,
    flows: Arc<dyn FlowTable>,
) -> io::Result<()> {
    let Listeners { tcp, udp } = listeners;
    let tcp = tcp.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>()?;
    let udp = udp.into_iter().map(UdpSocket::from_std).collect::<io::Result<Vec<_>>>()?;
    let acceptor = Arc::new(Acceptor {
        stages: Arc::clone(stages),
        dns: Arc::clone(dns),
        flows,
        permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
    });
    for listener in tcp {
        let lifecycle = &stages.lifecycle;
        let accepting = Arc::clone(&acceptor).accept_all(listener);
        lifecycle.tasks.spawn(until(lifecycle.draining.clone().cancelled_owned(), accepting));
    }
    for socket in udp {
        let lifecycle = &stages.lifecycle;
        let answering = Arc::clone(dns).serve_udp(socket);
        lifecycle.tasks.spawn(until(lifecycle.draining.clone().cancelled_owned(), answering));
    }
    Ok(())
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
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, client)) => {
                    back_off = BACK_OFF_MIN;
                    let this = Arc::clone(&self);
                    let Lifecycle { killed, tasks, .. } = self.stages.lifecycle.clone();
                    tasks.spawn(async move {
                        until(killed.cancelled(), this.serve(stream, ClientAddr(client))).await;
                        drop(permit);
                    });
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

    async fn serve(&self, stream: TcpStream, client: ClientAddr) {
        let Some(accepted) = self.recognise(stream, client) else { return };
        let Accepted { stream, process, original_dst, .. } = accepted;
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
            // A lingering time of zero makes the kernel send RST instead of FIN.
            if let Err(error) = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
                tracing::debug!(%error, "a connection without a flow record is closed, not reset");
            }
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

const DNS_PORT: u16 = 53;
/// Connections of one workload at once; the next one waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
