//! End-to-end tests on real Xen: the harness.
