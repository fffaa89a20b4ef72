//! How frontend and backend of a device find each other (`xen/include/public/io/xenbus.h`).
//!
//! Each has a directory in xenstore with a node `state`, which it alone writes and the other watches.

/// State of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are Xen's own")]
pub enum State {
    Initialising = 1,
    InitWait = 2,
    Initialised = 3,
    Connected = 4,
    Closing = 5,
    Closed = 6,
    Reconfiguring = 7,
    Reconfigured = 8,
}

impl State {
    /// Reads the value of a node; `None` for what is no state, and when there is no node.
    pub fn parse(value: &[u8]) -> Option<Self> {
        Some(match value {
            b"1" => Self::Initialising,
            b"2" => Self::InitWait,
            b"3" => Self::Initialised,
            b"4" => Self::Connected,
            b"5" => Self::Closing,
            b"6" => Self::Closed,
            b"7" => Self::Reconfiguring,
            b"8" => Self::Reconfigured,
            _ => return None,
        })
    }

    /// The value for a node.
    pub fn value(self) -> [u8; 1] {
        [b'0' + self as u8]
    }
}

/// What a network frontend does about the state of its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait for another state.
    Wait,
    /// Offer rings, and go to [`State::Connected`].
    Connect,
    /// Wait for another state; from now on the backend may be sent events.
    ///
    /// Not earlier: Linux's netback has its interrupt off between binding the event channel and
    /// being up. An event of that time leaves the channel masked for ever, with late EOI.
    Speak,
    /// Take rings back, and go to [`State::Closed`].
    Close,
    /// Go to [`State::Initialising`], so that the backend begins anew.
    Begin,
}

/// What to do in state `own`, when the backend is in `backend`; `None` if it is not there.
pub fn step(own: State, backend: Option<State>) -> Step {
    use State::{Closed, Closing, Connected, InitWait, Initialising};
    match (own, backend) {
        (Initialising, Some(InitWait | Connected)) => Step::Connect,
        (Connected, None | Some(Closing | Closed)) => Step::Close,
        (Connected, Some(Connected)) => Step::Speak,
        (Closed, Some(Initialising | InitWait)) => Step::Begin,
        _ => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_numbers_as_text() {
        for number in b'0'..=b'9' {
            if let Some(state) = State::parse(&[number]) {
                assert_eq!(state.value(), [number]);
            } else {
                assert!(number == b'0' || number == b'9');
            }
        }
        assert_eq!(State::parse(b""), None);
        assert_eq!(State::parse(b"44"), None);
    }

    #[test]
    fn a_frontend_connects_closes_and_begins_anew() {
        assert_eq!(step(State::Initialising, None), Step::Wait);
        assert_eq!(step(State::Initialising, Some(State::Initialising)), Step::Wait);
        assert_eq!(step(State::Initialising, Some(State::InitWait)), Step::Connect);
        assert_eq!(step(State::Connected, Some(State::InitWait)), Step::Wait);
        assert_eq!(step(State::Connected, Some(State::Connected)), Step::Speak);
        assert_eq!(step(State::Connected, Some(State::Closing)), Step::Close);
        assert_eq!(step(State::Connected, None), Step::Close);
        assert_eq!(step(State::Closed, Some(State::Closed)), Step::Wait);
        assert_eq!(step(State::Closed, Some(State::InitWait)), Step::Begin);
    }
}
