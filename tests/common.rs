//! What several tests need.

pub mod tollgate;
pub mod world;
