//! Domain ids: Xen's number for one incarnation of a domain.

use core::fmt;

/// A domain's number, which Xen may hand out again once the domain is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "domid_t")]
#[repr(transparent)]
pub struct DomId(pub u16);

impl DomId {
    /// The control domain.
    pub const DOM0: Self = Self(0);
    /// The first id that is no domain's; the values from here on have special meanings.
    #[doc(alias = "DOMID_FIRST_RESERVED")]
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
    /// In a hypercall: the calling domain itself.
    #[doc(alias = "DOMID_SELF")]
    pub const SELF: Self = Self(0x7ff0);
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
