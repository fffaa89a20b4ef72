//! The command line and the local cloud.
