//! The whole gateway in worlds of its own: real clients inside `tollgate run`, real servers outside.

#[cfg(test)]
mod common;
#[cfg(test)]
#[path = "gateway/credentials.rs"]
mod credentials;
