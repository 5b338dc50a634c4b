//! Running the binary.
