//! Tollgate: the way of a connection, stage by stage.
//!
//! Each stage is one module; it takes the former stage's value by value and returns the next or its own
//! error. The modules below stand in the order of the flow:
//!
//! ```text
//! discover → capture → trust → dns → accept → sniff → terminate → http → policy → credentials → upstream → audit
//! ```

// What a workload is, and the words every stage shares.
pub mod agent;
pub mod config;
pub mod net;

// The stages that need privilege.
pub mod capture;
pub mod trust;

// The stages that parse hostile bytes and own no rights.
pub mod accept;
pub mod audit;
pub mod credentials;
pub mod dns;
pub mod http;
pub mod policy;
pub mod sniff;
pub mod terminate;
pub mod upstream;

// What holds the stages together.
pub mod cli;
pub mod gateway;
pub mod run;
pub mod state;
