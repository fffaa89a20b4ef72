//! Suspending a capsule: what the manager and the library OS say to each other.
//!
//! Fields and bits are in the [`console`](crate::console) page; each of them is changed
//! first, then an event is sent through the console's port. A capsule with
//! [`GUEST_SUSPENDS`](crate::console::GUEST_SUSPENDS) is asked like this:
//!
//! 1. The host sets [`HOST_SUSPEND`] with a [`Reason`]. Should it lose patience, it clears the
//!    bit. Either way it must be ready to see the guest suspended, and let it go on then.
//! 2. The guest runs the application's hooks, brings its devices to rest, publishes the last
//!    set of changed pages if they are tracked, and suspends itself
//!    (`SCHEDOP_shutdown`, reason `suspend`, with the frame of start info in `rdx`).
//! 3. The host sees the domain shut down. From here on it takes no more output and gives no
//!    more input: whatever is in the rings of the console page travels with the page, and is
//!    neither lost nor doubled.
//! 4. Before either copy goes on, the host writes into *its* console page: flags without
//!    [`HOST_SUSPEND`] and [`HOST_TRACK`], the reason that holds for this copy, with
//!    [`HOST_NO_STORE`](crate::console::HOST_NO_STORE) if xenstored does not know it yet, and
//!    records into [`RESUME`](crate::console::RESUME), ended by [`Kind::End`]. The hypercall
//!    then returns 1 in the domain that was suspended, 0 in a new one.
//!
//! | copy | returns | reason | records |
//! |---|---|---|---|
//! | goes on in a new domain, the only one | 0 | any but clone | [`Seed`], [`Stood`] |
//! | is a second one beside the first | 0 | clone | the same, and [`Name`], [`Net`] for each interface |
//! | goes on where it was | 1 | any | none are read |
//!
//! The guest ends with an event on the console's port when it runs again.
//!
//! In a new domain the host sets `start_info` as Xen's own tools do: machine frames and ports of
//! console and xenstore, `nr_pages`, the address of shared info. While suspended, the guest has
//! frames of its own numbering there (`Pfn`), and neither shared info nor grant table mapped.
//! The ring page of xenstore is at rest: the guest resets it when it goes on in a new domain.
//!
//! Plain `xl save` and `xl migrate` go through `control/shutdown` in xenstore instead, and know
//! of no reasons and records.
//!
//! [`HOST_SUSPEND`]: crate::console::HOST_SUSPEND
//! [`HOST_TRACK`]: crate::console::HOST_TRACK
//! [`Kind::End`]: crate::boot::Kind::End
//! [`Seed`]: crate::boot::Kind::Seed
//! [`Stood`]: crate::boot::Kind::Stood
//! [`Name`]: crate::boot::Kind::Name
//! [`Net`]: crate::boot::Kind::Net

use crate::console::{HOST_REASON, HOST_SUSPEND};

/// Why a capsule is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// Somebody asked who gave no reason, such as `xl`.
    Other = 0,
    /// It moves to another node.
    Migrate = 1,
    /// It is saved, and ends here.
    Save = 2,
    /// It is copied, and goes on; so does the copy.
    Clone = 3,
    /// It is saved, and goes on here.
    Checkpoint = 4,
}

impl Reason {
    /// The bits of `HOST_FLAGS` that tell it.
    pub const fn bits(self) -> u32 {
        (self as u32) << HOST_REASON.trailing_zeros()
    }

    /// The reason in `HOST_FLAGS`; [`Self::Other`] for one that is not known.
    pub fn from_flags(flags: u32) -> Self {
        [Self::Migrate, Self::Save, Self::Clone, Self::Checkpoint]
            .into_iter()
            .find(|reason| reason.bits() == flags & HOST_REASON)
            .unwrap_or(Self::Other)
    }

    /// The reason that `HOST_FLAGS` asks for, if it asks.
    pub fn requested(flags: u32) -> Option<Self> {
        (flags & HOST_SUSPEND != 0).then(|| Self::from_flags(flags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::{HOST_EOF, HOST_STDIN, HOST_TRACK};

    #[test]
    fn a_reason_comes_back_from_among_other_flags() {
        let others = HOST_STDIN | HOST_EOF | HOST_TRACK;
        for reason in [Reason::Other, Reason::Migrate, Reason::Save, Reason::Clone, Reason::Checkpoint] {
            let flags = reason.bits() | others;
            assert_eq!(Reason::from_flags(flags), reason);
            assert_eq!(Reason::requested(flags), None);
            assert_eq!(Reason::requested(flags | HOST_SUSPEND), Some(reason));
        }
    }

    #[test]
    fn a_reason_of_a_newer_host_is_another_one() {
        assert_eq!(Reason::requested(HOST_SUSPEND | HOST_REASON), Some(Reason::Other));
    }
}
