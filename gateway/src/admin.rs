//! How root asks the daemon: HTTP/1.1 with JSON over a Unix socket.
//!
//! ```text
//! tollgate status ── GET /v1/status ──▶ /run/tollgate/daemon.sock ── Question ──▶ the daemon's loop ── Answer
//! ```
//!
//! Only root is answered: the kernel says who connects (`SO_PEERCRED`, unix(7)), whatever the file's mode. A question is
//! put to the loop that owns the workloads and answered there, so that no answer shows half of a change.

mod client;
mod report;
mod server;

use std::path::PathBuf;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::oneshot;

pub use client::{AskError, ask};
pub use report::{
    Connections, EngineReport, NetworkReport, Report, State, TrustReport, WayIn, WorkloadReport,
};
pub use server::{AdminError, BODY_MAX_BYTES, listen};

/// Where the daemon listens.
pub const SOCKET: &str = "/run/tollgate/daemon.sock";

/// What is asked of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// `GET /v1/status`: every workload that it knows.
    Status,
    /// `POST /v1/reload`: reads agents, rules and credentials again.
    Reload,
    /// `POST /v1/containers/ID/prepare`: judges a container that is to be made, and says what it is to be.
    Prepare {
        /// The engine's id.
        id: String,
        /// Its configuration (OCI runtime specification, `config.json`).
        configuration: Value,
        /// The program that asks to arm it.
        hook: PathBuf,
    },
    /// `POST /v1/containers/ID/arm`: governs a container before its first instruction.
    Arm {
        /// The engine's id.
        id: String,
        /// Its first process.
        pid: i32,
    },
}

/// What it answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// 200, or what is wrong with the question.
    pub status: StatusCode,
    /// One object.
    pub body: Value,
}

/// A question with the way back.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub question: Question,
    /// Where the answer goes; whoever asked may be gone.
    pub answer: oneshot::Sender<Answer>,
}

impl Answer {
    /// The question is answered.
    #[must_use]
    pub fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body }
    }

    /// It cannot be; `message` says why.
    #[must_use]
    pub fn refused(status: StatusCode, message: &str) -> Self {
        Self { status, body: json!({ "error": message }) }
    }
}
