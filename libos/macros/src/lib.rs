//! The attribute macro of fcap-libos.
