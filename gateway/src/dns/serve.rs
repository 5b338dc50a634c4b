//! Sockets → messages → sockets.

use std::future::{Future, ready};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, Stream, StreamExt as _, unfold};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::{self, Parsed};
use super::{Server, Transport};
use crate::audit::{Kind, Reason};

impl Server {
    /// Answers datagrams until the task is dropped. Answers go to the sender, from the address they were sent to.
    pub async fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; QUERY_MAX_BYTES];
        let mut pause = PAUSE_MIN;
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((length, sender)) => {
                    pause = PAUSE_MIN;
                    let datagram = buffer.get(..length).unwrap_or_default();
                    self.spawn_answer(&socket, datagram, sender);
                    // A flood must not keep another workload from its turn.
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    // Out of memory, or a socket that is going away: neither may become a busy loop.
                    tracing::warn!(%error, agent = %self.agent.name, "no DNS query could be received");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Answers the queries of one connection, within limits of time and number.
    pub async fn serve_tcp(self: Arc<Self>, stream: TcpStream) {
        let end = self.serve_stream(stream).await;
        if end.queries == 0 {
            let mut record = self.audit.open(Kind::Connection, &self.agent, end.reason);
            record.scheme = Some("tcp");
            record.port = Some(super::DNS_PORT);
        }
    }

    fn spawn_answer(
        self: &Arc<Self>,
        socket: &Arc<UdpSocket>,
        datagram: &[u8],
        sender: SocketAddr,
    ) {
        if sender.port() == 0 {
            return;
        }
        let (server, socket) = (Arc::clone(self), Arc::clone(socket));
        let Ok(permit) = Arc::clone(&self.in_flight).try_acquire_owned() else {
            // An answer at once is better than one that comes after the client has given up.
            if let Some(answer) = server.overload_of(datagram)
                && let Err(error) = socket.try_send_to(&answer, sender)
            {
                tracing::debug!(%error, "a DNS refusal could not be sent");
            }
            return;
        };
        let datagram = datagram.to_vec();
        tokio::spawn(async move {
            if let Some(answer) = server.answer(&datagram, Transport::Udp).await
                && let Err(error) = socket.send_to(&answer, sender).await
            {
                tracing::debug!(%error, "a DNS answer could not be sent");
            }
            drop(permit);
        });
    }

    fn overload_of(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        match message::parse(datagram) {
            Parsed::Query(query) => self.overload(&query.envelope, Transport::Udp),
            Parsed::Refuse(refusal) => self.overload(&refusal.envelope, Transport::Udp),
            Parsed::Ignore => None,
        }
    }

    /// Takes further queries while earlier ones are still being answered (RFC 7766 section 6.2.1.1): each answer goes
    /// as soon as it is there, so that a slow name holds up no other one.
    pub(super) async fn serve_stream<S>(&self, stream: S) -> StreamEnd
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Ok(_permit) = self.connections.try_acquire() else {
            return StreamEnd { queries: 0, reason: Reason::RateLimited };
        };
        let deadline = Instant::now() + TCP_LIFETIME_MAX;
        let (reader, mut writer) = tokio::io::split(stream);
        let mut incoming = pin!(messages(reader));
        let mut answering = FuturesUnordered::new();
        let (mut read, mut queries) = (0, 0);
        // Why nothing more is read. What has been asked before is still answered.
        let mut closing = None;
        loop {
            if closing.is_none() && (read == TCP_MESSAGES_MAX || Instant::now() >= deadline) {
                closing = Some(Reason::DnsAnswered);
            }
            if let Some(reason) = closing.filter(|_| answering.is_empty()) {
                if reason == Reason::DnsAnswered {
                    let unread = incoming.as_mut().take_while(|message| ready(message.is_ok()));
                    part(&mut writer, unread.count()).await;
                }
                return StreamEnd { queries, reason };
            }
            let may_read = closing.is_none() && answering.len() < TCP_IN_FLIGHT_MAX;
            let step = async {
                tokio::select! {
                    Some(answer) = answering.next() => Step::Answer(answer),
                    Some(message) = incoming.next(), if may_read => Step::Message(message),
                    else => Step::Message(Ok(None)),
                }
            };
            match timeout(TCP_IDLE_MAX, step).await {
                Ok(Step::Message(Ok(Some(query)))) => {
                    read += 1;
                    answering.push(self.answer_in_turn(query));
                }
                Ok(Step::Message(Ok(None)) | Step::Answer(None)) => {
                    closing = Some(Reason::DnsRefused);
                }
                Ok(Step::Message(Err(_gone))) => closing = Some(Reason::ClientClosed),
                Ok(Step::Answer(Some(answer))) => {
                    queries += 1;
                    match timeout(TCP_IDLE_MAX, write_framed(&mut writer, &answer)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) | Err(_) => {
                            return StreamEnd { queries, reason: Reason::ClientClosed };
                        }
                    }
                }
                Err(_elapsed) => return StreamEnd { queries, reason: Reason::FirstBytesTimeout },
            }
        }
    }

    /// Answers one query of a connection when the workload has room for it.
    async fn answer_in_turn(&self, query: Vec<u8>) -> Option<Vec<u8>> {
        let _permit = self.in_flight.acquire().await.ok()?;
        self.answer(&query, Transport::Tcp).await
    }
}

/// Ends a connection on which more may come than is answered. With bytes unread the kernel would reset it, and with it
/// the answers that are still on their way.
async fn part<W: AsyncWrite + Unpin>(writer: &mut W, reading: impl Future<Output = usize>) {
    let unread = async {
        writer.shutdown().await?;
        std::io::Result::Ok(reading.await)
    };
    match timeout(LINGER_MAX, unread).await {
        Ok(Ok(unread)) => tracing::trace!(unread, "a DNS connection was asked more than it may"),
        Ok(Err(error)) => tracing::trace!(%error, "the client was faster"),
        Err(_elapsed) => {}
    }
}

/// What happens next on a connection.
enum Step {
    /// A message came; `None` where its length is none that a query has.
    Message(std::io::Result<Option<Vec<u8>>>),
    /// An answer is ready; `None` where silence is the answer.
    Answer(Option<Vec<u8>>),
}

/// How a connection ended; the reason counts only where there was no query to write about.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StreamEnd {
    pub(super) queries: usize,
    pub(super) reason: Reason,
}

/// The messages of a connection. The half that was read of one is kept while something else goes on.
fn messages<S: AsyncRead + Unpin>(
    reader: S,
) -> impl Stream<Item = std::io::Result<Option<Vec<u8>>>> {
    unfold(reader, async |mut reader| Some((read_framed(&mut reader).await, reader)))
}

/// The next message; `None` where its length is none that a query has.
async fn read_framed<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Option<Vec<u8>>> {
    let length = usize::from(stream.read_u16().await?);
    if length == 0 || length > QUERY_MAX_BYTES {
        return Ok(None);
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(Some(query))
}

async fn write_framed<S: AsyncWrite + Unpin>(stream: &mut S, answer: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
    let mut framed = Vec::with_capacity(answer.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(answer);
    // In one piece: clients are known to read length and message with one call.
    stream.write_all(&framed).await?;
    stream.flush().await
}

/// Longest query: a name of 255 bytes and generous EDNS options (padding goes to 468 bytes).
pub(super) const QUERY_MAX_BYTES: usize = 4096;

/// Wait for a message, and for the client to take an answer.
pub(super) const TCP_IDLE_MAX: Duration = Duration::from_secs(10);

/// The whole of one connection.
const TCP_LIFETIME_MAX: Duration = Duration::from_secs(120);

/// Queries of one connection that are being answered at once; the next one is not read before.
pub(super) const TCP_IN_FLIGHT_MAX: usize = 32;

/// How long a client may take to see that a connection is closed.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// Messages of one connection.
pub(super) const TCP_MESSAGES_MAX: usize = 128;

/// First and longest wait after an error of the socket.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
