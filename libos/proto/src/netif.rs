//! Network cards between frontend and backend (`xen/include/public/io/netif.h`).
//!
//! Two rings of 256 entries: with requests to send, and with pages to receive into. A packet
//! takes one or more entries; [`more`](flags::MORE_DATA) says that it goes on. Right after its
//! first entry there may be extra ones, of which [`Gso`] says that the packet is to be cut into
//! segments, or consists of such.

/// Entries of each ring.
pub const RING_ENTRIES: u32 = 256;
/// Bytes of an entry of the ring to send.
pub const TX_LEN: usize = 12;
/// Bytes of an entry of the ring to receive.
pub const RX_LEN: usize = 8;
/// Most entries that every backend takes for one packet, extra ones not counted.
#[doc(alias = "XEN_NETIF_NR_SLOTS_MIN")]
pub const SLOTS_MAX: usize = 18;
/// Longest frame, which is the most that its length can say.
pub const FRAME_MAX: usize = 65_535;

/// Extra entries of one packet: there are not more kinds.
const EXTRAS_MAX: usize = 4;
const PAGE_SIZE: usize = crate::frame::PAGE_SIZE;

/// Flags of requests to send and of responses about what was received; their numbers are the same.
pub mod flags {
    /// The checksum covers the pseudo-header alone.
    #[doc(alias = "NETTXF_csum_blank")]
    pub const CSUM_BLANK: u16 = 1;
    /// The checksum is right, or need not be.
    #[doc(alias = "NETTXF_data_validated")]
    pub const DATA_VALIDATED: u16 = 2;
    /// The packet goes on in the next entry.
    #[doc(alias = "NETTXF_more_data")]
    pub const MORE_DATA: u16 = 4;
    /// An extra entry follows.
    #[doc(alias = "NETTXF_extra_info")]
    pub const EXTRA_INFO: u16 = 8;
}

/// Request to send one piece of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "netif_tx_request")]
pub struct TxRequest {
    /// The page; [`GrantRef`](crate::gnttab::GrantRef).
    pub grant: u32,
    /// First byte in the page.
    pub offset: u16,
    /// See [`flags`].
    pub flags: u16,
    /// Comes back in the response.
    pub id: u16,
    /// Bytes of the piece; of the whole packet in its first entry.
    pub size: u16,
}

impl TxRequest {
    /// The entry, as words.
    pub fn emit(self) -> [u32; 3] {
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        [self.grant, pair(self.offset, self.flags), pair(self.id, self.size)]
    }
}

/// Response to a request to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "netif_tx_response")]
pub struct TxResponse {
    /// Of the request.
    pub id: u16,
    /// 0 if it was sent, or [`Self::NULL`]; negative if it was not.
    pub status: i16,
}

impl TxResponse {
    /// The entry was an extra one; there is no id.
    #[doc(alias = "NETIF_RSP_NULL")]
    pub const NULL: i16 = 1;

    /// Reads the first word of an entry.
    pub fn parse(word: u32) -> Self {
        Self { id: word as u16, status: (word >> 16) as i16 }
    }
}

/// The extra entry about segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "netif_extra_info")]
pub struct Gso {
    /// Bytes of data in each segment but the last.
    pub size: u16,
    /// [`Self::TCPV4`] or [`Self::TCPV6`].
    pub kind: u8,
}

impl Gso {
    /// TCP over IPv4.
    #[doc(alias = "XEN_NETIF_GSO_TYPE_TCPV4")]
    pub const TCPV4: u8 = 1;
    /// TCP over IPv6.
    #[doc(alias = "XEN_NETIF_GSO_TYPE_TCPV6")]
    pub const TCPV6: u8 = 2;
    /// The kind of extra entry: `XEN_NETIF_EXTRA_TYPE_GSO`.
    const TYPE: u8 = 1;

    /// The entry, as words.
    pub fn emit(self) -> [u32; 2] {
        [u32::from(Self::TYPE) | u32::from(self.size) << 16, self.kind.into()]
    }
}

/// Whether another extra entry follows the one with this first word.
pub fn extra_goes_on(word: u32) -> bool {
    const MORE: u8 = 1;
    (word >> 8) as u8 & MORE != 0
}

/// Request to receive into a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "netif_rx_request")]
pub struct RxRequest {
    /// Comes back in the response.
    pub id: u16,
    /// The page; [`GrantRef`](crate::gnttab::GrantRef).
    pub grant: u32,
}

impl RxRequest {
    /// The entry, as words.
    pub fn emit(self) -> [u32; 2] {
        [self.id.into(), self.grant]
    }
}

/// Response about a page that was received into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "netif_rx_response")]
pub struct RxResponse {
    /// Of the request.
    pub id: u16,
    /// First byte in the page.
    pub offset: u16,
    /// See [`flags`].
    pub flags: u16,
    /// Bytes; negative if something went wrong.
    pub status: i16,
}

impl RxResponse {
    /// Reads an entry.
    pub fn parse(words: [u32; 2]) -> Self {
        Self {
            id: words[0] as u16,
            offset: (words[0] >> 16) as u16,
            flags: words[1] as u16,
            status: (words[1] >> 16) as i16,
        }
    }
}

/// What the backend did that it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// A response is for another page than the one in its place.
    Id,
    /// Data reaches beyond its page.
    Bounds,
}

impl core::fmt::Display for Breach {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Id => "a response is for another page than the one in its place",
            Self::Bounds => "data reaches beyond its page",
        })
    }
}

/// A packet that has arrived, in pages of which each belongs to an index of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxPacket {
    /// Where its first byte is.
    pub first: Piece,
    /// Index of the page with the second piece; the others follow. Extra entries are in between.
    pub rest: u32,
    /// How many pieces follow the first, in consecutive pages.
    pub rest_count: u32,
    /// Bytes of all pieces.
    pub len: usize,
    /// All pieces but the last reach the end of their page, and all but the first begin at the
    /// beginning of theirs.
    pub is_dense: bool,
    /// The checksum is right, or need not be.
    pub is_verified: bool,
}

/// Bytes in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The page's index of the ring.
    pub index: u32,
    /// First byte in it.
    pub offset: u16,
    /// How many.
    pub len: u16,
}

/// Puts responses together into packets.
///
/// Everything that the backend says is checked here: what comes out can be used.
#[derive(Clone, Debug, Default)]
pub struct Assembler {
    /// The packet of which more is to come.
    packet: Option<RxPacket>,
    /// Extra entries are to come before that.
    extra: bool,
    /// How many there were.
    extras: usize,
    /// More of the packet is to come after them.
    more: bool,
    /// Of the last piece.
    reaches_end: bool,
    /// The packet cannot be used; what belongs to it is passed over.
    spoiled: bool,
}

impl Assembler {
    /// Whether the pages of responses so far are still needed, because their packet is not complete.
    pub fn is_within_packet(&self) -> bool {
        self.packet.is_some() && !self.spoiled
    }

    /// Takes the response at `index` of the ring, as words, whose request had the number `id`.
    /// Returns a packet when it is complete.
    ///
    /// # Errors
    /// If the backend has broken the rules. There is no going on after that.
    pub fn push(&mut self, index: u32, id: u16, words: [u32; 2]) -> Result<Option<RxPacket>, Breach> {
        if self.extra {
            self.extra = extra_goes_on(words[0]);
            self.extras += 1;
            self.spoiled |= self.extras > EXTRAS_MAX;
        } else {
            let response = RxResponse::parse(words);
            if response.id != id {
                return Err(Breach::Id);
            }
            self.more = response.flags & flags::MORE_DATA != 0;
            self.piece(index, response)?;
        }
        if self.extra || self.more {
            return Ok(None);
        }
        self.extras = 0;
        let packet = self.packet.take();
        let spoiled = core::mem::take(&mut self.spoiled);
        Ok(packet.filter(|_| !spoiled))
    }

    fn piece(&mut self, index: u32, response: RxResponse) -> Result<(), Breach> {
        // A negative length is an error of this piece alone.
        let len = u16::try_from(response.status).unwrap_or(0);
        self.spoiled |= response.status < 0;
        let end = usize::from(response.offset) + usize::from(len);
        if end > PAGE_SIZE {
            return Err(Breach::Bounds);
        }
        match &mut self.packet {
            None => {
                self.extra = response.flags & flags::EXTRA_INFO != 0;
                self.packet = Some(RxPacket {
                    first: Piece { index, offset: response.offset, len },
                    rest: index,
                    rest_count: 0,
                    len: len.into(),
                    is_dense: true,
                    is_verified: response.flags & (flags::CSUM_BLANK | flags::DATA_VALIDATED) != 0,
                });
            }
            Some(packet) => {
                if packet.rest_count == 0 {
                    packet.rest = index;
                }
                packet.rest_count += 1;
                packet.len += usize::from(len);
                packet.is_dense &= self.reaches_end && response.offset == 0;
                // No honest packet is so long, and no buffer is.
                self.spoiled |= packet.len > FRAME_MAX || packet.rest_count as usize >= SLOTS_MAX;
            }
        }
        self.reaches_end = end == PAGE_SIZE;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    fn response(id: u16, offset: u16, flags: u16, status: i16) -> [u32; 2] {
        [u32::from(id) | u32::from(offset) << 16, u32::from(flags) | u32::from(status as u16) << 16]
    }

    #[test]
    fn entries_are_laid_out_as_in_xens_header() {
        let request = TxRequest { grant: 9, offset: 1, flags: 2, id: 3, size: 4 };
        assert_eq!(request.emit(), [9, 0x0002_0001, 0x0004_0003]);
        assert_eq!(TxResponse::parse(0xffff_0007), TxResponse { id: 7, status: -1 });
        assert_eq!(Gso { size: 1448, kind: Gso::TCPV4 }.emit(), [0x05a8_0001, 1]);
        assert_eq!(RxRequest { id: 5, grant: 6 }.emit(), [5, 6]);
        let parsed = RxResponse::parse(response(1, 2, 3, -4));
        assert_eq!(parsed, RxResponse { id: 1, offset: 2, flags: 3, status: -4 });
    }

    #[test]
    fn a_packet_of_one_piece_is_complete_at_once() {
        let mut assembler = Assembler::default();
        let words = response(7, 0, flags::DATA_VALIDATED, 60);
        let packet = assembler.push(7, 7, words).unwrap().unwrap();
        assert_eq!((packet.len, packet.is_dense, packet.is_verified), (60, true, true));
    }

    #[test]
    fn a_large_packet_goes_on_behind_its_extra_entry() {
        let mut assembler = Assembler::default();
        let more = flags::MORE_DATA;
        assert_eq!(assembler.push(0, 0, response(0, 0, more | flags::EXTRA_INFO, 4096)), Ok(None));
        assert_eq!(assembler.push(1, 1, [1, 1]), Ok(None));
        assert_eq!(assembler.push(2, 2, response(2, 0, more, 4096)), Ok(None));
        let packet = assembler.push(3, 3, response(3, 0, 0, 10)).unwrap().unwrap();
        assert_eq!((packet.first.index, packet.rest, packet.rest_count), (0, 2, 2));
        assert_eq!((packet.len, packet.is_dense), (8202, true));
        // And the next one is by itself.
        assert!(assembler.push(4, 4, response(4, 0, 0, 10)).unwrap().is_some());
    }

    #[test]
    fn a_failed_piece_spoils_its_packet_alone() {
        let mut assembler = Assembler::default();
        assert_eq!(assembler.push(0, 0, response(0, 0, flags::MORE_DATA, 4096)), Ok(None));
        assert_eq!(assembler.push(1, 1, response(1, 0, 0, -1)), Ok(None));
        assert!(assembler.push(2, 2, response(2, 0, 0, 10)).unwrap().is_some());
    }

    #[test]
    fn breaches_are_found() {
        assert_eq!(Assembler::default().push(0, 0, response(1, 0, 0, 1)), Err(Breach::Id));
        assert_eq!(Assembler::default().push(0, 0, response(0, 4000, 0, 97)), Err(Breach::Bounds));
    }

    proptest! {
        #[test]
        fn whatever_the_backend_says_packets_are_within_bounds(entries: std::vec::Vec<(bool, u16, u16, i16)>) {
            let mut assembler = Assembler::default();
            for (index, (wrong, offset, flags, status)) in entries.into_iter().enumerate() {
                let words = response(index as u16 ^ u16::from(wrong), offset % 5000, flags, status % 5000);
                match assembler.push(index as u32, index as u16, words) {
                    Ok(Some(packet)) => {
                        prop_assert!(packet.len <= FRAME_MAX);
                        prop_assert!((packet.rest_count as usize) < SLOTS_MAX);
                        prop_assert!(usize::from(packet.first.offset + packet.first.len) <= PAGE_SIZE);
                    }
                    Ok(None) => {}
                    Err(_) => break,
                }
            }
        }
    }
}
