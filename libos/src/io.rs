//! Standard input and output as streams.
//!
//! [`print!`](crate::print) and its kin write at once and block the whole capsule
//! while the host is behind; [`stdout`] lets other tasks run meanwhile. Both go to
//! the same console, as does standard error.
//!
//! The streams implement the traits of `embedded-io-async`, which are re-exported,
//! for code that is generic over them.

use crate::console;
use alloc::{string::String, vec::Vec};
use core::{convert::Infallible, fmt};
pub use embedded_io_async::{self, Read, Write};

/// Standard input.
pub fn stdin() -> Stdin {
    Stdin(())
}

/// Standard input: what `fcap run -i` or `fcap attach` sends.
///
/// A capsule that was started without is at the end of input at once. All handles
/// read the same stream.
#[derive(Debug)]
pub struct Stdin(());

/// Input is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

impl fmt::Display for NotUtf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard input is not valid utf-8")
    }
}

impl core::error::Error for NotUtf8 {}

impl Stdin {
    /// Reads some bytes; 0 at the end of input.
    ///
    /// At most 1,024 bytes come at once: that is how much the host can send ahead.
    pub async fn read(&mut self, bytes: &mut [u8]) -> usize {
        console::read(bytes).await
    }

    /// Appends a line to `line`, with its line feed unless input ends without; returns
    /// how many bytes, 0 at the end of input.
    ///
    /// # Errors
    /// If the line is not UTF-8; it is lost then.
    pub async fn read_line(&mut self, line: &mut String) -> Result<usize, NotUtf8> {
        let mut bytes = Vec::new();
        let count = console::read_until(b'\n', &mut bytes).await;
        line.push_str(str::from_utf8(&bytes).map_err(|_| NotUtf8)?);
        Ok(count)
    }

    /// Appends bytes up to and with `delimiter`; returns how many, 0 at the end of input.
    pub async fn read_until(&mut self, delimiter: u8, bytes: &mut Vec<u8>) -> usize {
        console::read_until(delimiter, bytes).await
    }

    /// Appends everything to the end of input; returns how many bytes.
    pub async fn read_to_end(&mut self, bytes: &mut Vec<u8>) -> usize {
        let begin = bytes.len();
        let mut piece = [0; 1024];
        loop {
            match console::read(&mut piece).await {
                0 => return bytes.len() - begin,
                count => bytes.extend_from_slice(&piece[..count]),
            }
        }
    }

    /// Appends everything to the end of input; returns how many bytes.
    ///
    /// # Errors
    /// If it is not UTF-8; it is lost then.
    pub async fn read_to_string(&mut self, text: &mut String) -> Result<usize, NotUtf8> {
        let mut bytes = Vec::new();
        let count = self.read_to_end(&mut bytes).await;
        text.push_str(str::from_utf8(&bytes).map_err(|_| NotUtf8)?);
        Ok(count)
    }

    /// Input line by line.
    pub fn lines(self) -> Lines {
        Lines { stdin: self }
    }
}

impl embedded_io_async::ErrorType for Stdin {
    type Error = Infallible;
}

impl Read for Stdin {
    async fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Infallible> {
        Ok(console::read(bytes).await)
    }
}

/// Lines of input; from [`Stdin::lines`].
#[derive(Debug)]
pub struct Lines {
    stdin: Stdin,
}

impl Lines {
    /// The next line without its end (`\n`, `\r\n`); `None` at the end of input.
    ///
    /// # Errors
    /// If the line is not UTF-8; the one after it can still be read.
    pub async fn next_line(&mut self) -> Result<Option<String>, NotUtf8> {
        let mut line = String::new();
        if self.stdin.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        if line.ends_with('\n') {
            line.pop();
            if line.ends_with('\r') {
                line.pop();
            }
        }
        Ok(Some(line))
    }
}

/// Standard output.
pub fn stdout() -> Stdout {
    Stdout(())
}

/// Standard output, not buffered.
#[derive(Debug)]
pub struct Stdout(());

impl Stdout {
    /// Writes everything, and lets other tasks run while the host is behind.
    ///
    /// Between the pieces of a long text, what other tasks write may appear.
    pub async fn write_all(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[console::write(bytes).await..];
        }
    }
}

impl embedded_io_async::ErrorType for Stdout {
    type Error = Infallible;
}

impl Write for Stdout {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        Ok(console::write(bytes).await)
    }

    async fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// What the printing macros call.
#[doc(hidden)]
pub fn _print(text: fmt::Arguments<'_>) {
    console::print(text);
}

/// Prints to standard output.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::io::_print(::core::format_args!($($arg)*)) };
}

/// Prints a line to standard output.
#[macro_export]
macro_rules! println {
    () => { $crate::io::_print(::core::format_args!("\n")) };
    ($($arg:tt)*) => { $crate::io::_print(::core::format_args!("{}\n", ::core::format_args!($($arg)*))) };
}

/// Prints to standard error, which is the same console.
#[macro_export]
macro_rules! eprint {
    ($($arg:tt)*) => { $crate::io::_print(::core::format_args!($($arg)*)) };
}

/// Prints a line to standard error, which is the same console.
#[macro_export]
macro_rules! eprintln {
    ($($arg:tt)*) => { $crate::println!($($arg)*) };
}
