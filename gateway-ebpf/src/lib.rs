//! What the kernel programs and the gateway share: the ABI and the decisions over it.
//!
//! This library has no dependency and builds on any host; the programs themselves are the bin of this package
//! behind its feature `bpf`.

#![no_std]

pub mod abi;
pub mod bucket;
pub mod decide;
pub mod frame;
