//! Tollgate: the way of a connection, stage by stage.
//!
//! A stage is one module. It takes the former stage's value by value and returns the next one or its own error, so
//! that no stage can be skipped: the next one wants what only the former can make. Each error has one
//! [`audit::Reason`], which is the same word in replies and audit lines.
//!
//! ```text
//! discover → capture → trust → dns → accept → sniff → terminate → http → policy → credentials → upstream → audit
//! └─────── privileged ──────┘ └──────────────── parse hostile bytes, need no rights ────────────────┘
//! ```
//!
//! | stage | from → to |
//! |---|---|
//! | [`discover`] | what an operator named → who is governed as whom, and what cannot be held |
//! | [`capture`] | [`agent::Agent`] → [`capture::Captured`]: kernel programs, maps, listeners in its network |
//! | [`trust`] | the system's roots and the CA → what the workload trusts |
//! | [`dns`] | query → answer, with an address that stands for the name |
//! | [`accept`] | kernel → [`accept::Accepted`]: a connection and where it was made to |
//! | [`sniff`] | [`accept::Accepted`] → [`sniff::Sniffed`]: TLS, HTTP/1 or HTTP/2 |
//! | [`terminate`] | [`sniff::TlsHello`] → [`terminate::Terminated`]: the plain text, and the name that was asked for |
//! | [`http`] | the plain text → [`http::RequestHead`] with a proven destination; every reply of the gateway's own |
//! | [`policy`] | [`http::RequestHead`] → [`policy::Verdict`], which may hold a [`policy::Permit`] |
//! | [`credentials`] | [`policy::Permit`] → the request with the secrets that it names |
//! | [`upstream`] | [`policy::Permit`] and request → response, over a connection whose far end is verified |
//! | [`audit`] | every stage → one record per request, or per connection that had none |
//!
//! [`gateway`] builds the stages and serves workloads with them, [`run`] is one command as a workload, [`daemon`] governs workloads
//! that others start and is asked through [`admin`], [`runtime`] brings containers to it before they run, [`doctor`] tries whether this kernel holds them, [`config`]
//! reads what is decided by people, [`state`] holds what outlives a process, [`cli`] is the door.
//!
//! Invariants, threads, ports and files, and how to add a stage or a test: `ARCHITECTURE.md`. What it is to hold
//! against: `SECURITY.md`.

// Blank lines keep the order of the flow, which rustfmt would otherwise turn into that of the alphabet.

// The words that every stage shares.
pub mod agent;
pub(crate) mod bucket;
pub mod config;
mod mountinfo;
pub mod net;

// The stages that need privilege.
pub mod discover;

pub mod capture;

pub mod trust;

// The stages that parse hostile bytes and own no rights.
pub mod dns;

pub mod accept;

pub mod sniff;

pub mod terminate;

pub mod http;

pub mod policy;

pub mod credentials;

pub mod upstream;

pub mod audit;

// What holds the stages together.
pub mod state;

pub mod gateway;

pub mod run;

pub mod admin;

pub mod daemon;

pub mod doctor;

pub mod runtime;

pub mod cli;
