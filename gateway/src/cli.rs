//! (stub)
pub mod check;
pub mod explain;
mod printed;
pub use printed::Printed;
