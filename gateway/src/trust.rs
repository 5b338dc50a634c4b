//! `Captured` → the workload trusts the CA: merged bundles and the environment of clients.
//!
//! Most programs read one file of roots, the distribution's own; the others are told by a variable. `bundle` and
//! `environment` say what stands in these files and variables; `container` mounts them in a container that runs,
//! `handout` says what one is given when it is created.

pub mod bundle;
pub mod check;
pub mod container;
pub mod environment;
mod handout;
mod keystore;

pub use bundle::{Anchors, BundleError};
pub use check::check;
pub use container::{InstallError, Report, install};
pub use handout::{Handout, HandoutError, handout, publish};
pub use keystore::KeystoreError;
