//! The servers of a test's internet: real TLS, HTTP/1.1 and HTTP/2, and a few that misbehave.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The root that everybody in a test's internet is signed by.
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// What a server shows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    Trusted,
    SelfSigned,
    OtherName,
    Expired,
}

/// What a server does with a connection, once TLS stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// HTTP/1.1 and HTTP/2, as the client wants; see [`answer`].
    Http,
    /// HTTP/1.1 only, however able the client is.
    Http1,
    /// Reads a head, writes these bytes, closes.
    Says(&'static [u8]),
}

/// One request as a server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// SNI; none over plain HTTP.
    pub(crate) server_name: Option<String>,
    pub(crate) version: Version,
    pub(crate) method: String,
    pub(crate) host: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
}

/// One name on the internet, with its servers on ports 443 (TLS) and 80 (plain).
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) name: String,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    site: Arc<Site>,
}

/// What the connections of one origin share.
struct Site {
    manner: Manner,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    /// Body bytes read by `/count` and `/held`.
    body_bytes: AtomicUsize,
    /// Body bytes handed out by `/bytes`.
    handed_out: AtomicUsize,
    released: watch::Sender<bool>,
    /// What `/files` serves.
    files: OnceLock<PathBuf>,
}

impl Origin {
    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.site.seen.lock().unwrap().clone()
    }

    /// How many TCP connections came so far.
    pub(crate) fn connections(&self) -> usize {
        self.site.connections.load(Ordering::SeqCst)
    }

    /// How many bytes of request bodies were read so far.
    pub(crate) fn body_bytes(&self) -> usize {
        self.site.body_bytes.load(Ordering::SeqCst)
    }

    /// How many bytes `/bytes` has handed to its connections so far.
    pub(crate) fn handed_out(&self) -> usize {
        self.site.handed_out.load(Ordering::SeqCst)
    }

    /// Serves a folder below `/files`.
    pub(crate) fn serve_files(&self, folder: PathBuf) {
        self.site.files.set(folder).expect("one folder");
    }

    /// Lets everything go on that waits: `/held`, `/events`, `/cut`, `/silent`.
    pub(crate) fn release(&self) {
        self.site.released.send_replace(true);
    }

    /// The `Authorization` of each request, in order.
    pub(crate) fn authorizations(&self) -> Vec<Option<String>> {
        let text = |seen: &Seen| Some(seen.headers.get("authorization")?.to_str().ok()?.to_owned());
        self.seen().iter().map(text).collect()
    }
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn acceptor(&self, names: &[String], identity: Identity, manner: Manner) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let names = match identity {
            Identity::OtherName => vec!["somebody-else.test".to_owned()],
            Identity::Trusted | Identity::SelfSigned | Identity::Expired => names.to_vec(),
        };
        let mut params = CertificateParams::new(names).unwrap();
        if identity == Identity::Expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let certificate = match identity {
            Identity::SelfSigned => params.self_signed(&key),
            _signed => params.signed_by(&key, &self.issuer),
        };
        let chain = vec![CertificateDer::from(certificate.unwrap().der().to_vec())];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let alpn: &[&[u8]] =
            if manner == Manner::Http { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Starts the servers of one name. Must be called inside a runtime, in the internet's namespace.
pub(crate) fn start(
    ca: &TestCa,
    name: &str,
    (v4, v6): (Ipv4Addr, Ipv6Addr),
    identity: Identity,
    manner: Manner,
) -> Origin {
    let site = Arc::new(Site {
        manner,
        seen: Mutex::default(),
        connections: AtomicUsize::new(0),
        body_bytes: AtomicUsize::new(0),
        handed_out: AtomicUsize::new(0),
        released: watch::Sender::new(false),
        files: OnceLock::new(),
    });
    let names = [name.to_owned(), v4.to_string(), v6.to_string()];
    let acceptor = ca.acceptor(&names, identity, manner);
    for address in [IpAddr::V4(v4), IpAddr::V6(v6)] {
        listen(&site, (address, 443).into(), Some(acceptor.clone()));
        listen(&site, (address, 80).into(), None);
    }
    Origin { name: name.to_owned(), v4, v6, site }
}

fn listen(site: &Arc<Site>, address: SocketAddr, acceptor: Option<TlsAcceptor>) {
    let listener = std::net::TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let site = Arc::clone(site);
    drop(tokio::spawn(async move {
        while let Ok((stream, _client)) = listener.accept().await {
            site.connections.fetch_add(1, Ordering::SeqCst);
            let (site, acceptor) = (Arc::clone(&site), acceptor.clone());
            // What a client does to its connection is no failure of the server.
            drop(tokio::spawn(async move {
                let Some(acceptor) = acceptor else {
                    let mut first = [0; 3];
                    let is_http2 =
                        matches!(stream.peek(&mut first).await, Ok(3)) && &first == b"PRI";
                    return site.serve(stream, None, is_http2).await;
                };
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let tls = stream.get_ref().1;
                let server_name = tls.server_name().map(str::to_owned);
                let is_http2 = tls.alpn_protocol() == Some(b"h2");
                site.serve(stream, server_name, is_http2).await;
            }));
        }
    }));
}

impl Site {
    async fn serve<S>(self: Arc<Self>, mut stream: S, server_name: Option<String>, is_http2: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if let Manner::Says(bytes) = self.manner {
            let mut head = Vec::new();
            while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                    return;
                }
            }
            if stream.write_all(bytes).await.is_ok() {
                drop(stream.shutdown().await);
            }
            return;
        }
        let service = service_fn(|request: Request<Incoming>| {
            let site = Arc::clone(&self);
            site.seen.lock().unwrap().push(remember(&request, server_name.clone()));
            async move { Ok::<_, Infallible>(site.answer(request).await) }
        });
        let io = TokioIo::new(stream);
        drop(if is_http2 {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, service)
                .await
        } else {
            hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
        });
    }

    /// The path says what is wanted; every other path gets a short text.
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let mut parts = path.trim_start_matches('/').split('/');
        match (parts.next().unwrap_or_default(), parts.next().unwrap_or_default()) {
            ("bytes", count) => Response::new(streamed(self.zeros(count.parse().unwrap()))),
            ("echo", _) => {
                Response::new(request.into_body().map_err(io::Error::other).boxed_unsync())
            }
            ("count", _) => self.count(request.into_body()).await,
            ("held", _) => {
                self.wait().await;
                self.count(request.into_body()).await
            }
            ("silent", _) => {
                self.wait().await;
                text("at last")
            }
            ("events", _) => {
                let mut response = Response::new(streamed(self.events()));
                let kind = http::HeaderValue::from_static("text/event-stream");
                response.headers_mut().insert("content-type", kind);
                response
            }
            ("v1", _) => model(request).await,
            ("cut", _) => {
                let mut response = Response::new(streamed(self.cut_off()));
                response.headers_mut().insert("content-length", 1000.into());
                response
            }
            ("files", _) => {
                let folder = self.files.get().expect("a folder is served");
                match std::fs::read(folder.join(path.trim_start_matches("/files/"))) {
                    Ok(bytes) => Response::new(full(bytes.into())),
                    Err(_absent) => {
                        let mut response = text("not here\n");
                        *response.status_mut() = StatusCode::NOT_FOUND;
                        response
                    }
                }
            }
            _other => text("hello from the origin\n"),
        }
    }

    async fn wait(&self) {
        let mut released = self.released.subscribe();
        drop(released.wait_for(|released| *released).await);
    }

    async fn count(&self, mut body: Incoming) -> Response<Body> {
        let mut total = 0;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            self.body_bytes.fetch_add(length, Ordering::SeqCst);
            total += length;
        }
        let ending = if body.is_end_stream() { "" } else { " and no end" };
        text(&format!("{total} bytes{ending}\n"))
    }

    fn zeros(
        self: Arc<Self>,
        count: usize,
    ) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        stream::unfold((self, count), |(site, left)| async move {
            let length = left.min(ZEROS.len());
            site.handed_out.fetch_add(length, Ordering::SeqCst);
            let chunk = Bytes::from_static(&ZEROS[..length]);
            (length > 0).then(|| (Ok(Frame::data(chunk)), (site, left - length)))
        })
    }

    /// Ten bytes; when it is released, the connection breaks.
    fn cut_off(self: Arc<Self>) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static {
        stream::unfold((self, false), |(site, is_begun)| async move {
            if !is_begun {
                return Some((Ok(Frame::data(Bytes::from_static(b"0123456789"))), (site, true)));
            }
            site.wait().await;
            Some((Err(io::Error::other("broken on purpose")), (site, true)))
        })
    }

    /// One event at once, the second when it is released.
    fn events(self: Arc<Self>) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static {
        stream::unfold((self, 1), |(site, number)| async move {
            match number {
                1 => {}
                2 => site.wait().await,
                _ => return None,
            }
            let event = Bytes::from(format!("data: event {number}\n\n"));
            Some((Ok(Frame::data(event)), (site, number + 1)))
        })
    }
}

/// A model's answer of 50 tokens: Anthropic's, or OpenAI's below `/v1/chat`; as events where the body says `stream`, and
/// compressed for whoever takes it.
async fn model(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let is_openai = head.uri.path().starts_with("/v1/chat");
    let takes_gzip = head
        .headers
        .get("accept-encoding")
        .is_some_and(|codings| codings.to_str().unwrap_or_default().contains("gzip"));
    let is_streamed = body.windows(8).any(|part| part == b"\"stream\"");
    if is_streamed {
        let events = if is_openai { OPENAI_EVENTS } else { ANTHROPIC_EVENTS };
        let events = events.split_inclusive("\n\n").map(|event| Ok(Frame::data(event.into())));
        let mut response = Response::new(streamed(stream::iter(events)));
        let kind = http::HeaderValue::from_static("text/event-stream; charset=utf-8");
        response.headers_mut().insert("content-type", kind);
        return response;
    }
    let answer = if is_openai { OPENAI } else { ANTHROPIC };
    let mut response = text(answer);
    let fields = response.headers_mut();
    fields.insert("content-type", http::HeaderValue::from_static("application/json"));
    if takes_gzip && !is_openai {
        fields.insert("content-encoding", http::HeaderValue::from_static("gzip"));
        *response.body_mut() = full(Bytes::from_static(ANTHROPIC_GZIP));
    }
    response
}

fn remember(request: &Request<Incoming>, server_name: Option<String>) -> Seen {
    let header = request.headers().get("host").and_then(|host| host.to_str().ok());
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    Seen {
        server_name,
        version: request.version(),
        method: request.method().to_string(),
        host: authority.or(header).unwrap_or_default().to_owned(),
        target: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: request.headers().clone(),
    }
}

fn text(text: &str) -> Response<Body> {
    Response::new(full(Bytes::copy_from_slice(text.as_bytes())))
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn streamed(frames: impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static) -> Body {
    StreamBody::new(frames).boxed_unsync()
}

pub(crate) const ANTHROPIC: &str = r#"{"id":"msg_1","type":"message","content":[{"type":"text","text":"Hello"}],"usage":{"input_tokens":20,"output_tokens":30}}"#;

/// The same, compressed.
const ANTHROPIC_GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\x4d\x8b\x4b\x0a\x80\x30\x10\x43\xef\x92\x75\x17\x7e\x76\x73\x02\xef\x20\x22\xa2\x43\x11\xeb\x54\xe8\x14\x94\xd2\xbb\x6b\x05\xc1\x55\xc8\x7b\x49\xc2\xba\x80\xb0\x07\x3b\xd6\x30\xd0\xeb\xe0\x52\x39\x84\xc9\xf2\x03\x66\x2f\xca\xa2\xa0\x3e\x7d\x52\xf9\xd4\x32\x2d\x41\xe8\xd8\x39\x8f\x3c\x18\xc4\xf7\x42\x09\xab\x1c\x51\x47\xf5\x1b\x4b\x00\x35\x95\x81\x8f\xfa\x47\x6d\x95\xf3\x0d\xf1\x75\x88\x13\x79\x00\x00\x00";

const OPENAI: &str = r#"{"object":"chat.completion","choices":[{"message":{"content":"Hello"}}],"usage":{"prompt_tokens":20,"completion_tokens":30,"total_tokens":50}}"#;

const ANTHROPIC_EVENTS: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"usage":{"input_tokens":15,"cache_read_input_tokens":5,"output_tokens":1}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":30}}

event: message_stop
data: {"type":"message_stop"}

"#;

const OPENAI_EVENTS: &str = r#"data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":null}

data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello"}}],"usage":null}

data: {"object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":20,"completion_tokens":30,"total_tokens":50}}

data: [DONE]

"#;
