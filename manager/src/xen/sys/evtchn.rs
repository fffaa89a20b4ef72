//! Linux's event channel device, `/dev/xen/evtchn` (`include/uapi/xen/evtchn.h`).

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// `_IOC(_IOC_NONE, 'E', nr, size)` with arguments of `words` 32-bit words.
const fn request(nr: u64, words: u64) -> u64 {
    ((words * 4) << 16) | (b'E' as u64) << 8 | nr
}

/// Event channels bound by this process; all are closed on drop.
#[derive(Debug)]
pub struct EventChannels {
    device: File,
}

impl EventChannels {
    /// Opens the device.
    ///
    /// # Errors
    /// If the device is not there.
    pub fn open() -> io::Result<Self> {
        Ok(Self { device: OpenOptions::new().read(true).write(true).open("/dev/xen/evtchn")? })
    }

    fn call(&self, request: u64, argument: &mut [u32]) -> io::Result<u32> {
        // SAFETY: each request reads as many words as its size says, and each caller below
        // passes as many; none keeps the pointer.
        let result = unsafe { libc::ioctl(self.device.as_raw_fd(), request as _, argument.as_mut_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as u32) }
    }

    /// Binds a new local port to a port of another domain that waits for us.
    ///
    /// # Errors
    /// If that port is not there or not for us.
    pub fn bind(&self, domid: u32, remote_port: u32) -> io::Result<u32> {
        self.call(request(1, 2), &mut [domid, remote_port])
    }

    /// Closes a local port.
    ///
    /// # Errors
    /// If it is not ours.
    pub fn unbind(&self, port: u32) -> io::Result<()> {
        self.call(request(3, 1), &mut [port]).map(drop)
    }

    /// Sends an event to the other end of a local port.
    ///
    /// # Errors
    /// If it is not ours.
    pub fn notify(&self, port: u32) -> io::Result<()> {
        self.call(request(4, 1), &mut [port]).map(drop)
    }

    /// Waits for events and returns local ports that had one. Each of them stays silent until
    /// [`Self::unmask`].
    ///
    /// # Errors
    /// If the device fails.
    pub fn wait(&self, ports: &mut Vec<u32>) -> io::Result<()> {
        let mut bytes = [0; 256];
        let len = (&self.device).read(&mut bytes)?;
        ports.clear();
        ports.extend(bytes[..len].as_chunks().0.iter().map(|&port| u32::from_ne_bytes(port)));
        Ok(())
    }

    /// Lets ports report events again.
    ///
    /// # Errors
    /// If the device fails.
    pub fn unmask(&self, ports: &[u32]) -> io::Result<()> {
        let bytes: Vec<u8> = ports.iter().flat_map(|port| port.to_ne_bytes()).collect();
        (&self.device).write_all(&bytes)
    }
}

impl AsFd for EventChannels {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
