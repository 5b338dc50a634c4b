//! Vectors 1 to 12: what an ordinary program does.

use crate::layers::Layer::{Egress, Redirect, Wire};
use crate::prove::{Attempt, prove};
use crate::workload::Rights;

const PROGRAM: &str = "escapes/connects.py";

/// Vectors 1, 2 and 3.
#[test]
fn a_connection_of_tcp_goes_to_the_gateway_or_nowhere() {
    prove(&[Attempt {
        name: "tcp4-far",
        rights: Rights::Nobody,
        program: PROGRAM,
        arguments: &["tcp4-far"],
        free: "tcp4-far an answer from outside\n",
        governed: "tcp4-far closed\n",
        alone: &[(Redirect, "tcp4-far closed\n"), (Egress, "tcp4-far TimeoutError\n")],
    }]);
}
