//! `tollgate run` as whoever calls it and whoever is called sees it: ends, streams, rights, files, and what is left.
//! Privileged.

#[path = "run/clean_up.rs"]
mod clean_up;
#[path = "run/ends.rs"]
mod ends;
#[path = "run/files.rs"]
mod files;
#[path = "run/rights.rs"]
mod rights;
#[path = "run/streams.rs"]
mod streams;
#[path = "common/tollgate.rs"]
mod tollgate;
