//! `AuthorizedRequest` → response: resolves, checks the address, dials, verifies, pools.
pub mod resolve;
