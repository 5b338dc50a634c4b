//! The command line's side.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Answer;

/// The daemon was not asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no `tollgate daemon` answers at {}; is it running, and are you root?", path.display())]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Who listens is not root: it is not the daemon.
    #[error("{} belongs to somebody who is not root", .0.display())]
    NotRoot(PathBuf),
    /// It takes too long.
    #[error("the daemon has not answered in {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It answers something else.
    #[error("the daemon's answer makes no sense")]
    Http(#[from] hyper::Error),
    /// What is asked for is no path.
    #[error("the daemon cannot be asked for this")]
    Path(#[from] http::uri::InvalidUri),
    /// It answers something else.
    #[error("the daemon's answer is no JSON")]
    Json(#[from] serde_json::Error),
    /// No runtime can be made.
    #[error("cannot wait for an answer")]
    Runtime(#[source] io::Error),
}

/// Asks the daemon at `socket`, and waits at most `patience` for its answer. `path` and `body` are as in
/// [`super::Question`].
///
/// # Errors
/// When no daemon answers; what it refuses is an [`Answer`].
pub fn ask(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
    patience: Duration,
) -> Result<Answer, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = async {
        let answer = timeout(patience, exchange(socket, method, path, body)).await;
        answer.unwrap_or(Err(AskError::TimedOut(patience)))
    };
    runtime.map_err(AskError::Runtime)?.block_on(asked)
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Answer, AskError> {
    let no_daemon = |source| AskError::NoDaemon { path: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).await.map_err(no_daemon)?;
    if stream.peer_cred().map_err(no_daemon)?.uid() != 0 {
        return Err(AskError::NotRoot(socket.to_owned()));
    }
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let body = body.map(ToString::to_string).unwrap_or_default();
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse()?;
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("tollgate"));
    let driver = tokio::spawn(connection);
    let answered = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, body: serde_json::from_slice(&body)? })
    };
    let answer = answered.await;
    driver.abort();
    answer
}
