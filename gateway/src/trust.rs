//! `Captured` → the workload trusts the CA: merged bundles and the environment of clients.
