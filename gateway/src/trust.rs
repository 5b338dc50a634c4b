//! `Captured` → the workload trusts the CA: merged bundles and the environment of clients.
//!
//! Most programs read one file of roots, the distribution's own; the others are told by a variable. This module
//! says what stands in these files and variables. It mounts nothing and sets nothing.

pub mod bundle;
pub mod environment;

pub use bundle::BundleError;
