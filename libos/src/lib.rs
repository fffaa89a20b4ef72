//! The library OS that capsules are linked with.
#![no_std]
