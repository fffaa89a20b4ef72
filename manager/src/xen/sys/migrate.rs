//! Hypercalls that take a domain's state out and put it in again.

use std::{io, mem::zeroed, ptr, slice};

use xenctrl_sys as xc;

use super::{Hypercalls, check};

/// Bytes of a vCPU's context (`struct vcpu_guest_context`).
pub const CONTEXT_LEN: usize = size_of::<xc::vcpu_guest_context>();
/// Bytes of the arguments of any `domctl`.
const UNION_LEN: usize = 128;
/// Number and size at the beginning of `struct xen_domctl_ext_vcpucontext`.
const EXTENDED_HEAD: usize = 8;
/// Most frames whose types can be asked for at once.
pub const TYPES_MAX: usize = 1024;
/// Entries in one piece of the machine-to-physical table as Xen hands it out: 2 MiB.
pub const M2P_PIECE: u64 = (2 << 20) / 8;

/// An operation on page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableOp {
    /// Check a table of this level and keep it as one.
    Pin(u8),
    /// Let go of it.
    Unpin,
}

fn domctl(cmd: u32, domid: u32) -> xc::xen_domctl {
    xc::xen_domctl {
        cmd,
        interface_version: xc::XEN_DOMCTL_INTERFACE_VERSION,
        domain: domid as u16,
        ..Default::default()
    }
}

impl Hypercalls {
    fn domctl(&self, op: &mut xc::xen_domctl) -> io::Result<()> {
        // SAFETY: the pointer is to a live operation; callers keep what it points to alive and
        // have filled in the member of the union that belongs to `cmd`.
        check(unsafe { xc::xc_domctl(self.xch(), op) }).map(drop)
    }

    /// Types of a domain's frames (`XEN_DOMCTL_PFINFO_*`), in place of the frames.
    ///
    /// # Errors
    /// If Xen refuses.
    ///
    /// # Panics
    /// If there are more than [`TYPES_MAX`].
    pub fn page_types(&self, domid: u32, frames: &[u64]) -> io::Result<Vec<u32>> {
        assert!(frames.len() <= TYPES_MAX, "{} frames at once", frames.len());
        let mut buffer = self.calls.buffer(frames.len())?;
        buffer.copy_from_slice(frames);
        let mut op = domctl(xc::XEN_DOMCTL_getpageframeinfo3, domid);
        op.u.getpageframeinfo3 = xc::xen_domctl_getpageframeinfo3 {
            num: frames.len() as u64,
            array: xc::__guest_handle_xen_pfn_t { p: buffer.pointer() },
        };
        self.domctl(&mut op)?;
        Ok(buffer.iter().map(|&kind| kind as u32).collect())
    }

    /// Pins or unpins tables, all in one call.
    ///
    /// # Errors
    /// If Xen finds a table wrong; those before it are done.
    pub fn table_ops(&self, domid: u32, ops: &[(TableOp, u64)]) -> io::Result<()> {
        let mut list: Vec<xc::mmuext_op> = ops
            .iter()
            .map(|&(op, mfn)| {
                let cmd = match op {
                    TableOp::Pin(level) => xc::MMUEXT_PIN_L1_TABLE + u32::from(level) - 1,
                    TableOp::Unpin => xc::MMUEXT_UNPIN_TABLE,
                };
                let mut op = xc::mmuext_op { cmd, ..Default::default() };
                op.arg1.mfn = mfn;
                op
            })
            .collect();
        // SAFETY: the pointer is to as many live operations as said.
        check(unsafe { xc::xc_mmuext_op(self.xch(), list.as_mut_ptr(), list.len() as u32, domid) }).map(drop)
    }

    /// Changes entries of a domain's page tables: (machine address of the entry, its new value).
    ///
    /// # Errors
    /// If Xen refuses one of them; those before it are done.
    pub fn mmu_update(&self, domid: u32, updates: &[(u64, u64)]) -> io::Result<()> {
        self.calls.mmu_update(domid, false, updates)
    }

    /// A vCPU's context.
    ///
    /// # Errors
    /// If it has none.
    pub fn context(&self, domid: u32, vcpu: u32) -> io::Result<[u8; CONTEXT_LEN]> {
        // SAFETY: a union of structures of integers, for which zero is a value.
        let mut any: xc::vcpu_guest_context_any_t = unsafe { zeroed() };
        // SAFETY: the pointer is to a live context.
        check(unsafe { xc::xc_vcpu_getcontext(self.xch(), domid, vcpu, &mut any) })?;
        let mut bytes = [0; CONTEXT_LEN];
        // SAFETY: the context has as many bytes, all of them initialized: it was zeroed.
        bytes.copy_from_slice(unsafe { slice::from_raw_parts(ptr::from_ref(&any).cast(), CONTEXT_LEN) });
        Ok(bytes)
    }

    /// Sets a vCPU's context, which Xen checks.
    ///
    /// # Errors
    /// If Xen finds it wrong.
    pub fn set_context(&self, domid: u32, vcpu: u32, bytes: &[u8; CONTEXT_LEN]) -> io::Result<()> {
        // SAFETY: the structure has as many bytes, and any bits are values of its integers.
        let context: xc::vcpu_guest_context = unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) };
        let mut any = xc::vcpu_guest_context_any_t { c: context };
        // SAFETY: the pointer is to a live context.
        check(unsafe { xc::xc_vcpu_setcontext(self.xch(), domid, vcpu, &mut any) }).map(drop)
    }

    /// A vCPU's further callbacks, as Xen lays them out behind number and size.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn extended_context(&self, domid: u32, vcpu: u32) -> io::Result<Vec<u8>> {
        let mut op = domctl(xc::XEN_DOMCTL_get_ext_vcpucontext, domid);
        op.u.pad = [0; UNION_LEN];
        op.u.ext_vcpucontext.vcpu = vcpu;
        self.domctl(&mut op)?;
        // SAFETY: all bytes of the union were initialized, and Xen has written integers.
        let (len, bytes) = unsafe { (op.u.ext_vcpucontext.size as usize, op.u.pad) };
        Ok(bytes[EXTENDED_HEAD..len.clamp(EXTENDED_HEAD, UNION_LEN)].to_vec())
    }

    /// Sets what [`Self::extended_context`] gave, which Xen checks.
    ///
    /// # Errors
    /// If Xen finds it wrong.
    pub fn set_extended_context(&self, domid: u32, vcpu: u32, bytes: &[u8]) -> io::Result<()> {
        let mut op = domctl(xc::XEN_DOMCTL_set_ext_vcpucontext, domid);
        let mut all = [0; UNION_LEN];
        let end = EXTENDED_HEAD + bytes.len().min(UNION_LEN - EXTENDED_HEAD);
        all[EXTENDED_HEAD..end].copy_from_slice(&bytes[..end - EXTENDED_HEAD]);
        op.u.pad = all;
        op.u.ext_vcpucontext.vcpu = vcpu;
        op.u.ext_vcpucontext.size = end as u32;
        self.domctl(&mut op)
    }

    /// A vCPU's upper state (`xcr0`, `xcr0_accum`, XSAVE's area); empty where the processor has
    /// none.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn extended_state(&self, domid: u32, vcpu: u32) -> io::Result<Vec<u8>> {
        let mut op = domctl(xc::XEN_DOMCTL_getvcpuextstate, domid);
        op.u.vcpuextstate = xc::xen_domctl_vcpuextstate { vcpu, ..Default::default() };
        self.domctl(&mut op)?;
        // SAFETY: Xen has written this member.
        let mut state = unsafe { op.u.vcpuextstate };
        if state.xfeature_mask == 0 || state.size == 0 {
            return Ok(Vec::new());
        }
        let len = state.size as usize;
        let mut buffer = self.calls.buffer(len.div_ceil(8))?;
        state.buffer.p = buffer.pointer();
        op.u.vcpuextstate = state;
        self.domctl(&mut op)?;
        // SAFETY: as above.
        let used = unsafe { op.u.vcpuextstate.size } as usize;
        let mut bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(used.min(len));
        Ok(bytes)
    }

    /// Sets a vCPU's upper state, which Xen checks.
    ///
    /// # Errors
    /// If Xen finds it wrong, or this processor lacks some of it.
    pub fn set_extended_state(&self, domid: u32, vcpu: u32, bytes: &[u8]) -> io::Result<()> {
        let mut buffer = self.calls.buffer(bytes.len().div_ceil(8))?;
        for (word, bytes) in buffer.iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        let mut op = domctl(xc::XEN_DOMCTL_setvcpuextstate, domid);
        op.u.vcpuextstate = xc::xen_domctl_vcpuextstate {
            vcpu,
            size: bytes.len() as u64,
            buffer: xc::__guest_handle_uint64 { p: buffer.pointer() },
            ..Default::default()
        };
        self.domctl(&mut op)
    }

    /// Lets a domain go on that has shut down to be suspended.
    ///
    /// # Errors
    /// If it is gone.
    pub fn resume(&self, domid: u32) -> io::Result<()> {
        self.domctl(&mut domctl(xc::XEN_DOMCTL_resumedomain, domid))
    }

    /// Has Xen send an event on this port of the domain when it suspends, instead of telling
    /// xenstored.
    ///
    /// # Errors
    /// If the port is not bound to dom0.
    pub fn tell_of_suspend(&self, domid: u32, port: u32) -> io::Result<()> {
        // SAFETY: no pointers.
        check(unsafe { xc::xc_domain_subscribe_for_suspend(self.xch(), domid, port) }).map(drop)
    }

    /// Frames of the machine-to-physical table, as first frames of pieces of 2 MiB, and how many
    /// entries it has.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn m2p_frames(&self) -> io::Result<(Vec<u64>, u64)> {
        // Despite its name, Xen's answer is one more than the last page: where memory ends with a
        // piece, another piece would be asked for that there is not.
        let mut entries = 0;
        // SAFETY: the pointer is to a live integer.
        check(unsafe { xc::xc_maximum_ram_page(self.xch(), &mut entries) })?;
        let pieces = entries.div_ceil(M2P_PIECE);
        let mut frames = vec![0u64; pieces as usize];
        // SAFETY: the pointer is to as many live integers as said.
        check(unsafe { xc::xc_machphys_mfn_list(self.xch(), pieces, frames.as_mut_ptr()) })?;
        Ok((frames, entries))
    }

    /// Machine frames of the domain's grant table.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn grant_frames(&self, domid: u32) -> io::Result<Vec<u64>> {
        let mut size = xc::gnttab_query_size { dom: domid as u16, ..Default::default() };
        // SAFETY: the pointer is to a live structure.
        check(unsafe { xc::xc_gnttab_query_size(self.xch(), &mut size) })?;
        let mut frames = self.calls.buffer(size.nr_frames as usize)?;
        let mut op = xc::gnttab_setup_table {
            dom: domid as u16,
            nr_frames: size.nr_frames,
            status: 0,
            frame_list: xc::__guest_handle_xen_pfn_t { p: frames.pointer() },
        };
        let len = size_of_val(&op) as std::ffi::c_int;
        let op_pointer = ptr::from_mut(&mut op).cast();
        // SAFETY: the operation is live, and so is the buffer for as many frames as it says.
        check(unsafe { xc::xc_gnttab_op(self.xch(), xc::GNTTABOP_setup_table as i32, op_pointer, len, 1) })?;
        match op.status {
            0 => Ok(frames.to_vec()),
            status => Err(io::Error::other(format!("grant table status {status}"))),
        }
    }

    /// What the processor offers to PV guests, as Xen's feature words.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn cpu_features(&self) -> io::Result<Vec<u32>> {
        const MOST: usize = 64;
        let mut buffer = self.calls.buffer(MOST / 2)?;
        let mut op = xc::xen_sysctl {
            cmd: xc::XEN_SYSCTL_get_cpu_featureset,
            interface_version: xc::XEN_SYSCTL_INTERFACE_VERSION,
            // SAFETY: a union of structures of integers and pointers, for which zero is a value.
            u: unsafe { zeroed() },
        };
        op.u.cpu_featureset = xc::xen_sysctl_cpu_featureset {
            index: xc::XEN_SYSCTL_cpu_featureset_pv,
            nr_features: MOST as u32,
            features: xc::__guest_handle_uint32 { p: buffer.pointer().cast() },
        };
        // SAFETY: the operation is live, and so is the buffer that it points to.
        check(unsafe { xc::xc_sysctl(self.xch(), &mut op) })?;
        // SAFETY: Xen has written this member.
        let count = unsafe { op.u.cpu_featureset.nr_features } as usize;
        let words = buffer.iter().flat_map(|&word| [word as u32, (word >> 32) as u32]);
        Ok(words.take(count).collect())
    }

    /// Takes pages away from a domain.
    ///
    /// # Errors
    /// If Xen refuses one of them.
    pub fn take_pages(&self, domid: u32, frames: &mut [u64]) -> io::Result<()> {
        // SAFETY: the pointer is to as many live frame numbers as said.
        check(unsafe {
            xc::xc_domain_decrease_reservation_exact(
                self.xch(),
                domid,
                frames.len() as u64,
                0,
                frames.as_mut_ptr(),
            )
        })
        .map(drop)
    }

    /// Ends tracking of dirty pages.
    ///
    /// # Errors
    /// If it was not on.
    pub fn disable_log_dirty(&self, domid: u32) -> io::Result<()> {
        let op = xc::XEN_DOMCTL_SHADOW_OP_OFF;
        // SAFETY: a null pointer means that no size of the pool is asked for.
        check(unsafe { xc::xc_shadow_control(self.xch(), domid, op, ptr::null_mut(), 0) }).map(drop)
    }

    /// Pages dirtied since the last call, a bit each, least significant first; they count as
    /// clean from now on.
    ///
    /// # Errors
    /// If tracking is not on.
    pub fn take_log_dirty(&self, domid: u32, pages: u64) -> io::Result<Vec<u64>> {
        let mut buffer = self.calls.buffer(pages.div_ceil(64) as usize)?;
        let mut description = buffer.describe();
        // SAFETY: the description is of a live buffer with a bit for each of so many pages; no
        // statistics are wanted.
        let result = unsafe {
            xc::xc_logdirty_control(
                self.xch(),
                domid,
                xc::XEN_DOMCTL_SHADOW_OP_CLEAN,
                &mut description,
                pages,
                0,
                ptr::null_mut(),
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(buffer.to_vec()) }
    }
}
