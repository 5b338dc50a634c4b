//! `Captured` → the workload trusts the CA: merged bundles and the environment of clients.
//!
//! Most programs read one file of roots, the distribution's own; the others are told by a variable. `bundle` and
//! `environment` say what stands in these files and variables; `container` mounts them in a container that runs.

pub mod bundle;
pub mod check;
pub mod container;
pub mod environment;
mod keystore;

pub use bundle::{Anchors, BundleError};
pub use check::check;
pub use container::{InstallError, Report, install};
pub use keystore::KeystoreError;
