//! Changing a capsule's memory while it runs: what the manager and the library OS say to each other.
//!
//! A capsule has *memory* now, and a *largest memory* that it was built for: its list of machine
//! frames and its page tables reach so far. Frames without memory are holes: [`NO_FRAME`] in the
//! list, no entry in the page tables. A capsule that was built with less than its largest memory
//! has one hole, at the end. It gives memory back by making holes, and takes memory by filling
//! them; the hypervisor's count of its pages is what it has.
//!
//! # Protocol
//! Fields are in the [`console`](crate::console) page. A capsule with [`GUEST_BALLOONS`] is asked
//! like this:
//!
//! 1. The host raises the hypervisor's limit of the domain, if it is to have more: nobody takes
//!    what was not given. It writes [`MEMORY_TARGET`], then another number to
//!    [`MEMORY_REQUEST`], and sends an event on the console's port.
//! 2. The guest goes as far towards the target as it can: down as far as whole pages are free,
//!    up as far as the hypervisor gives. Pages are cleared before they are given back. It then
//!    sets [`MEMORY_ANSWER`] to the number, and sends an event.
//! 3. The host asks the hypervisor how much it is now, and has that be the limit.
//!
//! Should the host lose patience, it sets [`MEMORY_TARGET`] to 0. While the guest is to suspend
//! itself ([`HOST_SUSPEND`]) or to track its pages ([`HOST_TRACK`]) it leaves requests for later,
//! because whoever copies it has read its list of frames.
//!
//! [`GUEST_BALLOONS`]: crate::console::GUEST_BALLOONS
//! [`MEMORY_TARGET`]: crate::console::MEMORY_TARGET
//! [`MEMORY_REQUEST`]: crate::console::MEMORY_REQUEST
//! [`MEMORY_ANSWER`]: crate::console::MEMORY_ANSWER
//! [`HOST_SUSPEND`]: crate::console::HOST_SUSPEND
//! [`HOST_TRACK`]: crate::console::HOST_TRACK

/// In a list of machine frames: there is no memory behind this one.
#[doc(alias = "INVALID_P2M_ENTRY")]
pub const NO_FRAME: u64 = u64::MAX;

/// What a request asks of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// So many pages are to be given back.
    GiveBack(u64),
    /// So many pages are to be taken.
    Take(u64),
    /// It has what it shall have.
    Nothing,
}

impl Change {
    /// What [`MEMORY_TARGET`](crate::console::MEMORY_TARGET) asks of a guest that has `held`
    /// pages, and has frames for `most`.
    pub fn new(target: u32, held: u64, most: u64) -> Self {
        let target = match u64::from(target) {
            // Taken back meanwhile.
            0 => held,
            target => target.min(most.max(held)),
        };
        match target.cmp(&held) {
            core::cmp::Ordering::Less => Self::GiveBack(held - target),
            core::cmp::Ordering::Equal => Self::Nothing,
            core::cmp::Ordering::Greater => Self::Take(target - held),
        }
    }
}

/// How many frames from the first on have memory, of a list of `frames` whose holes are all at its
/// end, as in a new domain. `entry` reads an entry of the list.
pub fn populated(frames: u64, entry: impl Fn(u64) -> u64) -> u64 {
    let (mut with, mut without) = (0, frames);
    while with < without {
        let middle = with + (without - with) / 2;
        if entry(middle) == NO_FRAME {
            without = middle;
        } else {
            with = middle + 1;
        }
    }
    with
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_target_is_reached_from_both_sides_but_never_beyond_the_largest_memory() {
        assert_eq!(Change::new(100, 40, 200), Change::Take(60));
        assert_eq!(Change::new(100, 140, 200), Change::GiveBack(40));
        assert_eq!(Change::new(100, 100, 200), Change::Nothing);
        assert_eq!(Change::new(u32::MAX, 40, 200), Change::Take(160));
        assert_eq!(Change::new(0, 40, 200), Change::Nothing);
        // Another toolstack may have given it more than its list reaches.
        assert_eq!(Change::new(250, 240, 200), Change::Nothing);
        assert_eq!(Change::new(1, 240, 200), Change::GiveBack(239));
    }

    proptest! {
        #[test]
        fn the_hole_at_the_end_is_found(frames in 0u64..5000, share in 0.0f64..=1.0) {
            let filled = (frames as f64 * share) as u64;
            let entry = |frame| if frame < filled { frame * 7 } else { NO_FRAME };
            prop_assert_eq!(populated(frames, entry), filled);
        }
    }
}
