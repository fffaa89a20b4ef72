//! The capsule as a process: how its program begins and ends.

use crate::{
    end::{self, code},
    evtchn, println,
    single::Single,
    task,
};
use core::{cell::Cell, convert::Infallible, fmt};
use xen_proto::console::EndKind;

static NAME: Single<Cell<&str>> = Single::new(Cell::new(""));

/// Name of the program, as it was built.
pub(crate) fn name() -> &'static str {
    NAME.get()
}

/// Runs an application's `main`; what `#[libos::main]` calls.
#[doc(hidden)]
pub fn run<F: Future<Output: Termination>>(name: &'static str, main: F) -> ! {
    NAME.set(name);
    exit(task::block_on(main).report().0)
}

/// How often the capsule has been woken, by an event or a timer, after it had nothing to do.
pub fn wakeups() -> u64 {
    evtchn::wakeups()
}

/// Ends the capsule now, with an exit code.
///
/// Nothing is dropped. Everything printed so far reaches the host.
pub fn exit(code: i32) -> ! {
    end::end(EndKind::Exited, code)
}

/// Ends the capsule now, as a panic would, without a message.
pub fn abort() -> ! {
    end::end(EndKind::Panicked, code::PANICKED)
}

/// Ends the capsule because the operator asked for it.
pub(crate) fn stop() -> ! {
    end::end(EndKind::Stopped, code::STOPPED)
}

/// An exit code.
///
/// Shells see its low eight bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCode(i32);

impl ExitCode {
    /// Everything went well: 0.
    pub const SUCCESS: Self = Self(0);
    /// Something did not: 1.
    pub const FAILURE: Self = Self(1);
}

impl From<i32> for ExitCode {
    fn from(code: i32) -> Self {
        Self(code)
    }
}

impl From<u8> for ExitCode {
    fn from(code: u8) -> Self {
        Self(code.into())
    }
}

/// What `main` may return.
pub trait Termination {
    /// Tells people what there is to tell, and becomes the exit code.
    fn report(self) -> ExitCode;
}

impl Termination for () {
    fn report(self) -> ExitCode {
        ExitCode::SUCCESS
    }
}

impl Termination for ExitCode {
    fn report(self) -> ExitCode {
        self
    }
}

impl Termination for i32 {
    fn report(self) -> ExitCode {
        ExitCode(self)
    }
}

impl Termination for Infallible {
    fn report(self) -> ExitCode {
        match self {}
    }
}

impl<T: Termination, E: fmt::Debug> Termination for Result<T, E> {
    fn report(self) -> ExitCode {
        match self {
            Ok(value) => value.report(),
            Err(error) => {
                println!("Error: {error:?}");
                ExitCode::FAILURE
            }
        }
    }
}
