//! `tollgate run` as whoever calls it and whoever is called sees it: ends, streams, rights, files, and what is left.
//! Privileged.

#[cfg(test)]
#[path = "run/clean_up.rs"]
mod clean_up;
#[cfg(test)]
#[path = "run/ends.rs"]
mod ends;
#[cfg(test)]
#[path = "run/files.rs"]
mod files;
#[cfg(test)]
#[path = "run/rights.rs"]
mod rights;
#[cfg(test)]
#[path = "run/streams.rs"]
mod streams;
#[cfg(test)]
#[path = "common/tollgate.rs"]
mod tollgate;
