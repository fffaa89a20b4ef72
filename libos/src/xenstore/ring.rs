//! The ring page towards xenstored.

use crate::{mm::SharedPage, start};
use alloc::collections::VecDeque;
use core::sync::atomic::Ordering;
use xen_proto::{
    ring::{span, used},
    xenstore::ring::{LEN, REQ, REQ_CONS, REQ_PROD, RSP, RSP_CONS, RSP_PROD},
};

fn page() -> SharedPage {
    start::info().store()
}

fn filled(prod: u32, cons: u32) -> usize {
    used(prod, cons, LEN).expect("xenstored keeps the indexes of its ring in order")
}

/// Moves as many bytes as fit, at most `max`, from the front of `bytes` into the ring; returns how many.
pub(super) fn send(bytes: &mut VecDeque<u8>, max: usize) -> usize {
    let page = page();
    let cons = page.u32(REQ_CONS).load(Ordering::Acquire);
    let mut prod = page.u32(REQ_PROD).load(Ordering::Relaxed);
    let count = bytes.len().min(max).min(LEN - filled(prod, cons));
    let mut left = count;
    while left > 0 {
        let (front, _) = bytes.as_slices();
        let span = span(prod, left.min(front.len()), LEN);
        page.write(REQ + span.start, &front[..span.len()]);
        prod = prod.wrapping_add(span.len() as u32);
        left -= span.len();
        bytes.drain(..span.len());
    }
    page.u32(REQ_PROD).store(prod, Ordering::Release);
    count
}

/// Moves bytes from the ring into `bytes`; returns how many.
pub(super) fn receive(bytes: &mut [u8]) -> usize {
    let page = page();
    let prod = page.u32(RSP_PROD).load(Ordering::Acquire);
    let mut cons = page.u32(RSP_CONS).load(Ordering::Relaxed);
    let count = bytes.len().min(filled(prod, cons));
    let mut rest = &mut bytes[..count];
    while !rest.is_empty() {
        let span = span(cons, rest.len(), LEN);
        let (now, later) = rest.split_at_mut(span.len());
        page.read(RSP + span.start, now);
        cons = cons.wrapping_add(span.len() as u32);
        rest = later;
    }
    page.u32(RSP_CONS).store(cons, Ordering::Release);
    count
}

/// Drops what another xenstored has left there; all that we have sent was taken.
pub(super) fn reset() {
    let page = page();
    let prod = page.u32(RSP_PROD).load(Ordering::Relaxed);
    page.u32(RSP_CONS).store(prod, Ordering::Relaxed);
}
