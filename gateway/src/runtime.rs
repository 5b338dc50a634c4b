//! `tollgate-runtime`: an OCI runtime that governs a container before its first instruction, in front of the real one.
//!
//! ```text
//! engine ── create ── tollgate-runtime ── bundle checked and edited ── runc create ── createRuntime hook ── daemon
//! ```
//!
//! Only `create` is looked into. Everything else, and every argument, goes to the real runtime as it came.

pub mod arguments;
pub mod bundle;
