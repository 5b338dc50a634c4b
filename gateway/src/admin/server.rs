//! The daemon's side.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Answer, Asked, Question};

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {}", path.display())]
pub struct AdminError {
    path: PathBuf,
    source: io::Error,
}

/// Answers at `path` for as long as the returned receiver lives. A socket that a dead daemon has left there is
/// replaced: the caller holds the lock that keeps a second daemon out.
///
/// Must be called inside a runtime.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(path: &Path) -> Result<mpsc::Receiver<Asked>, AdminError> {
    let failed = |source| AdminError { path: path.to_owned(), source };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(accept(listener, sender));
    Ok(receiver)
}

async fn accept(listener: UnixListener, questions: mpsc::Sender<Asked>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while !questions.is_closed() {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an administrator was not heard");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if !is_root(&stream) {
            tracing::warn!("somebody who is not root asked at the administrator's socket");
            continue;
        }
        let questions = questions.clone();
        tokio::spawn(async move {
            serve(stream, questions).await;
            drop(place);
        });
    }
}

/// By the kernel's word. A user namespace maps its own root to another number here.
fn is_root(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)
}

async fn serve(stream: UnixStream, questions: mpsc::Sender<Asked>) {
    let service = service_fn(|request| {
        let questions = questions.clone();
        async move { Ok::<_, Infallible>(rendered(&answer(request, &questions).await)) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an administrator's connection ended");
    }
}

async fn answer(request: Request<Incoming>, questions: &mpsc::Sender<Asked>) -> Answer {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, BODY_MAX_BYTES).collect().await else {
        return Answer::refused(StatusCode::BAD_REQUEST, "the body is too long or broken");
    };
    let question = match question(&head.method, head.uri.path(), &body.to_bytes()) {
        Ok(question) => question,
        Err(refused) => return refused,
    };
    let (sender, receiver) = oneshot::channel();
    let ended = || Answer::refused(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending");
    match questions.send(Asked { question, answer: sender }).await {
        Ok(()) => receiver.await.unwrap_or_else(|_dropped| ended()),
        Err(_closed) => ended(),
    }
}

/// What a request asks.
fn question(method: &Method, path: &str, body: &Bytes) -> Result<Question, Answer> {
    let nothing = || Answer::refused(StatusCode::NOT_FOUND, "there is nothing of this name");
    match (method, path) {
        (&Method::GET, "/v1/status") => Ok(Question::Status),
        (&Method::POST, "/v1/reload") => Ok(Question::Reload),
        (&Method::POST, path) => {
            let container = path.strip_prefix("/v1/containers/").ok_or_else(nothing)?;
            let (id, asked) = container.split_once('/').ok_or_else(nothing)?;
            of_container(id.to_owned(), asked, body).unwrap_or_else(|| Err(nothing()))
        }
        _ => Err(nothing()),
    }
}

/// What is asked about a container; `None` where nothing has this name.
fn of_container(id: String, asked: &str, body: &Bytes) -> Option<Result<Question, Answer>> {
    let parsed = match asked {
        "prepare" => serde_json::from_slice(body)
            .map(|Prepare { configuration, hook }| Question::Prepare { id, configuration, hook }),
        "arm" => serde_json::from_slice(body).map(|Arm { pid }| Question::Arm { id, pid }),
        _ => return None,
    };
    Some(parsed.map_err(|error| Answer::refused(StatusCode::BAD_REQUEST, &error.to_string())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Prepare {
    configuration: Value,
    hook: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arm {
    pid: i32,
}

fn rendered(answer: &Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(answer.body.to_string()));
    *response.status_mut() = answer.status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// Administrators that are heard at one time.
const CONNECTIONS_MAX: usize = 64;
/// Longest body of a question: a container's configuration has some tens of kilobytes, and more with many mounts.
pub const BODY_MAX_BYTES: usize = 4 * 1024 * 1024;
/// How long a head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failure to accept (`EMFILE` and its kin do not go away at once).
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{AskError, ask};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A loop that answers every question with what it was.
    fn echo(path: &Path) -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let entered = runtime.enter();
        let mut questions = listen(path).unwrap();
        drop(entered);
        runtime.spawn(async move {
            while let Some(Asked { question, answer }) = questions.recv().await {
                answer.send(Answer::ok(json!({ "asked": format!("{question:?}") }))).unwrap();
            }
        });
        runtime
    }

    #[test]
    fn questions_reach_the_loop_and_answers_come_back_and_nothing_else_is_there() {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "only root is answered, and CI is set");
            return println!("SKIPPED: only root is answered");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daemon.sock");
        // What a dead daemon leaves does not stand in the way.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let _loop = echo(&path);
        let asked = |method, path_of_question| {
            ask(&path, method, path_of_question, None, PATIENCE).unwrap()
        };
        assert_eq!(asked(Method::GET, "/v1/status"), Answer::ok(json!({ "asked": "Status" })));
        assert_eq!(asked(Method::POST, "/v1/reload"), Answer::ok(json!({ "asked": "Reload" })));
        assert_eq!(asked(Method::GET, "/v1/reload").status, StatusCode::NOT_FOUND);
        let arm = json!({ "pid": 7 });
        let answer = ask(&path, Method::POST, "/v1/containers/c1/arm", Some(&arm), PATIENCE);
        let expected = r#"Arm { id: "c1", pid: 7 }"#;
        assert_eq!(answer.unwrap(), Answer::ok(json!({ "asked": expected })));
        let answer = ask(&path, Method::POST, "/v1/containers/c1/prepare", Some(&arm), PATIENCE);
        assert_eq!(answer.unwrap().status, StatusCode::BAD_REQUEST);
        assert_eq!(asked(Method::POST, "/v1/containers/c1/kill").status, StatusCode::NOT_FOUND);
        assert_eq!(asked(Method::POST, "/v1/containers/c1").status, StatusCode::NOT_FOUND);
        let long = json!("x".repeat(BODY_MAX_BYTES));
        let answer = ask(&path, Method::POST, "/v1/reload", Some(&long), PATIENCE).unwrap();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn without_a_daemon_the_error_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daemon.sock");
        let error = ask(&path, Method::GET, "/v1/status", None, PATIENCE).unwrap_err();
        assert!(matches!(error, AskError::NoDaemon { .. }), "{error:?}");
        assert!(error.to_string().contains("is it running"), "{error}");
    }
}
