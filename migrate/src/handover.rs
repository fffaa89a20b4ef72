//! Who runs the domain: the protocol of STREAM.md, section 8, as two pure state machines.
//!
//! Each is a table: a state and an event give actions, to be carried out in their order, and the
//! next state. The live move (`source`, `destination`) and a daemon that comes back after a
//! crash drive the same tables through [`drive_source`] and [`drive_destination`].
//!
//! The test at the end of this file walks through everything that can happen: each message lost,
//! doubled and late, each daemon killed before each action and started again, claims that cannot
//! be written. In no state do both sides run the domain, and out of every state it comes to run.

use std::io;

use crate::{
    domain::DomainError,
    error::{MigrateError, Side},
    wire::RecordType,
};

/// What one side keeps on disk for an attempt: that it has handed the domain over, or taken it.
pub trait Claim {
    /// Writes the claim. It is on disk when this returns.
    ///
    /// # Errors
    /// If that is not certain. It may be there or not.
    fn write(&mut self) -> io::Result<()>;

    /// Removes the claim, which may be absent. It is gone from the disk when this returns.
    ///
    /// # Errors
    /// If that is not certain.
    fn remove(&mut self) -> io::Result<()>;
}

/// What the two sides say to each other about an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Message {
    /// To the source: the domain is complete and paused.
    Ready,
    /// To the destination: run it; or: have you got it?
    Commit,
    /// To the source: I have it for good.
    Taken,
    /// To the source: I have not got it and never will.
    Gone,
    /// To the destination: my copy is gone.
    Released,
    /// To the destination: I keep it.
    Abort,
}

impl Message {
    /// The record that carries it.
    pub fn record_type(self) -> RecordType {
        match self {
            Self::Ready => RecordType::Ready,
            Self::Commit => RecordType::Commit,
            Self::Taken => RecordType::Taken,
            Self::Gone => RecordType::Gone,
            Self::Released => RecordType::Released,
            Self::Abort => RecordType::Abort,
        }
    }
}

/// Where the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceState {
    /// The domain is the source's; the destination is being filled.
    Sending,
    /// The destination may run it. The source asks until it knows.
    HandedOver,
    /// The domain is the source's, and the attempt is over.
    Kept,
    /// The domain is the destination's, and nothing of it is left here.
    Released,
}

/// What happens to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceEvent {
    /// The destination says so.
    Message(Message),
    /// Anything that prevents the move: a lost link, an error, a wish.
    Failure,
    /// The claim could not be written.
    ClaimFailed,
    /// Time to ask again.
    Tick,
}

/// What the source has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceAction {
    /// Write the claim; if that fails, [`SourceEvent::ClaimFailed`] follows.
    WriteClaim,
    /// Remove the claim.
    RemoveClaim,
    /// Let the suspended domain go on.
    Resume,
    /// Remove the domain.
    Destroy,
    /// Tell the destination. Nobody relies on its arrival.
    Send(Message),
}

impl SourceState {
    /// What to do when `event` comes, and the state after that.
    pub fn on(self, event: SourceEvent) -> (&'static [SourceAction], Self) {
        use Message::*;
        use SourceAction::*;
        use SourceEvent as Event;
        match (self, event) {
            (Self::Sending, Event::Message(Ready)) => (&[WriteClaim, Send(Commit)], Self::HandedOver),
            (Self::Sending, Event::Message(Gone) | Event::Failure) => (&[Send(Abort), Resume], Self::Kept),
            // No COMMIT was sent: nothing depends on whether the claim is on disk.
            (Self::HandedOver, Event::ClaimFailed) => (&[RemoveClaim, Send(Abort), Resume], Self::Kept),
            (Self::HandedOver, Event::Message(Taken)) => {
                (&[Destroy, RemoveClaim, Send(Released)], Self::Released)
            }
            (Self::HandedOver, Event::Message(Gone)) => (&[RemoveClaim, Resume], Self::Kept),
            (Self::HandedOver, Event::Tick) => (&[Send(Commit)], Self::HandedOver),
            (Self::Kept | Self::Released, Event::Message(Taken)) => (&[Send(Released)], self),
            _ => (&[], self),
        }
    }

    /// Where a daemon is that was killed, by what it finds, and what it has to do at once.
    pub fn recover(claim: bool, domain: FoundDomain) -> (&'static [SourceAction], Self) {
        use SourceAction::*;
        match (claim, domain) {
            (false, FoundDomain::Suspended) => (&[Resume], Self::Kept),
            (false, FoundDomain::Running) => (&[], Self::Kept),
            (false, FoundDomain::Gone) => (&[], Self::Released),
            // Resumed because the claim could not be written for certain: COMMIT was never sent.
            (true, FoundDomain::Running) => (&[RemoveClaim], Self::Kept),
            (true, FoundDomain::Suspended | FoundDomain::Gone) => {
                (&[Send(Message::Commit)], Self::HandedOver)
            }
        }
    }
}

/// The domain as a daemon finds it at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FoundDomain {
    /// It has shut down with reason suspend.
    Suspended,
    /// It runs, or was paused by somebody.
    Running,
    /// There is none, or it has ended.
    Gone,
}

/// Where the destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DestinationState {
    /// The domain is in the making.
    Receiving,
    /// It is complete and paused.
    Ready,
    /// It is the destination's. The source is told until it has released its copy.
    Taken,
    /// There is no domain of this attempt, and never will be.
    Dropped,
    /// The domain is the destination's, and the attempt is over.
    Done,
}

/// What happens to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DestinationEvent {
    /// The source says so.
    Message(Message),
    /// The image has come, and the domain is complete.
    Complete,
    /// Anything that prevents the move: a lost link, an error, no word for too long.
    Failure,
    /// The claim could not be written, or the domain not be let run.
    TakeFailed,
    /// Time to tell again.
    Tick,
}

/// What the destination has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DestinationAction {
    /// Write the claim; if that fails, [`DestinationEvent::TakeFailed`] follows.
    WriteClaim,
    /// Remove the claim.
    RemoveClaim,
    /// Let the domain run; if that fails right after the claim, [`DestinationEvent::TakeFailed`]
    /// follows.
    Activate,
    /// Remove the domain.
    Destroy,
    /// Tell the source. Nobody relies on its arrival.
    Send(Message),
}

impl DestinationState {
    /// What to do when `event` comes, and the state after that.
    pub fn on(self, event: DestinationEvent) -> (&'static [DestinationAction], Self) {
        use DestinationAction::*;
        use DestinationEvent as Event;
        use Message::*;
        match (self, event) {
            (Self::Receiving, Event::Complete) => (&[Send(Ready)], Self::Ready),
            (Self::Receiving, Event::Failure | Event::Message(Abort)) => (&[Destroy], Self::Dropped),
            (Self::Receiving, Event::Message(Commit)) => (&[Destroy, Send(Gone)], Self::Dropped),
            (Self::Ready, Event::Message(Commit)) => (&[WriteClaim, Activate, Send(Taken)], Self::Taken),
            (Self::Ready, Event::Failure | Event::Message(Abort)) => (&[Destroy], Self::Dropped),
            // It never ran. GONE would be a lie while the claim may still be on disk.
            (Self::Taken, Event::TakeFailed) => (&[RemoveClaim, Destroy, Send(Gone)], Self::Dropped),
            (Self::Taken, Event::Message(Commit) | Event::Tick) => (&[Send(Taken)], Self::Taken),
            (Self::Taken, Event::Message(Released)) => (&[RemoveClaim], Self::Done),
            (Self::Dropped | Self::Done, Event::Message(Commit)) => (&[Send(Gone)], self),
            _ => (&[], self),
        }
    }

    /// Where a daemon is that was killed, by what it finds, and what it has to do at once.
    pub fn recover(claim: bool, domain: FoundCopy) -> (&'static [DestinationAction], Self) {
        use DestinationAction::*;
        match (claim, domain) {
            (true, FoundCopy::Incoming) => (&[Activate, Send(Message::Taken)], Self::Taken),
            (true, FoundCopy::Taken | FoundCopy::Gone) => (&[Send(Message::Taken)], Self::Taken),
            (false, FoundCopy::Incoming) => (&[Destroy], Self::Dropped),
            (false, FoundCopy::Taken) => (&[], Self::Done),
            (false, FoundCopy::Gone) => (&[], Self::Dropped),
        }
    }
}

/// The domain as a daemon finds it at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FoundCopy {
    /// It came from elsewhere and was never let run.
    Incoming,
    /// It was let run, and is still there.
    Taken,
    /// There is none, or it has ended.
    Gone,
}

/// What the source's actions act on.
pub trait SourceParts {
    /// The claim on disk.
    fn claim(&mut self) -> &mut dyn Claim;
    /// Lets the suspended domain go on. Does nothing if it runs.
    ///
    /// # Errors
    /// If the hypervisor fails.
    fn resume(&mut self) -> Result<(), DomainError>;
    /// Removes the domain, which may be gone.
    ///
    /// # Errors
    /// If the hypervisor fails.
    fn destroy(&mut self) -> Result<(), DomainError>;
    /// Tells the destination, as well as it can.
    fn send(&mut self, message: Message);
}

/// Carries out what `event` asks for, and moves to the next state.
///
/// # Errors
/// If an action fails. In [`SourceState::Kept`] the domain is the source's, but was not resumed if
/// the error is the domain's. [`SourceState::HandedOver`] means that the next answer to COMMIT
/// brings the same actions again.
pub fn drive_source(
    state: &mut SourceState,
    event: SourceEvent,
    parts: &mut dyn SourceParts,
) -> Result<(), MigrateError> {
    let (actions, next) = state.on(event);
    for action in actions {
        match (action, act_at_source(*action, parts)) {
            (_, Ok(())) => {}
            (SourceAction::WriteClaim, Err(error)) => {
                *state = next;
                drive_source(state, SourceEvent::ClaimFailed, parts)?;
                return Err(error);
            }
            // No COMMIT was sent: a claim that stays behind is found to be void.
            (SourceAction::RemoveClaim, Err(_)) if event == SourceEvent::ClaimFailed => {}
            (SourceAction::Resume, Err(error)) => {
                *state = next;
                return Err(error);
            }
            (_, Err(error)) => return Err(error),
        }
    }
    *state = next;
    Ok(())
}

/// Takes up an attempt after a crash of the daemon.
///
/// # Errors
/// If an action fails; it can be called again.
pub fn recover_source(
    claim: bool,
    domain: FoundDomain,
    parts: &mut dyn SourceParts,
) -> Result<SourceState, MigrateError> {
    let (actions, state) = SourceState::recover(claim, domain);
    actions.iter().try_for_each(|action| act_at_source(*action, parts))?;
    Ok(state)
}

fn act_at_source(action: SourceAction, parts: &mut dyn SourceParts) -> Result<(), MigrateError> {
    const SIDE: Side = Side::Source;
    let of_claim = |source| MigrateError::Claim { side: SIDE, source };
    let of_domain = |source| MigrateError::Domain { side: SIDE, source };
    match action {
        SourceAction::WriteClaim => parts.claim().write().map_err(of_claim),
        SourceAction::RemoveClaim => parts.claim().remove().map_err(of_claim),
        SourceAction::Resume => parts.resume().map_err(of_domain),
        SourceAction::Destroy => parts.destroy().map_err(of_domain),
        SourceAction::Send(message) => {
            parts.send(message);
            Ok(())
        }
    }
}

/// What the destination's actions act on.
pub trait DestinationParts {
    /// The claim on disk.
    fn claim(&mut self) -> &mut dyn Claim;
    /// Lets the domain run. Does nothing if it runs.
    ///
    /// # Errors
    /// If the hypervisor fails.
    fn activate(&mut self) -> Result<(), DomainError>;
    /// Removes the domain, which never ran. May be gone.
    fn destroy(&mut self);
    /// Tells the source, as well as it can.
    fn send(&mut self, message: Message);
}

/// Carries out what `event` asks for, and moves to the next state.
///
/// # Errors
/// If an action fails. In [`DestinationState::Taken`] a claim could not be removed, of a domain
/// that runs or was never let run; the event can come again.
pub fn drive_destination(
    state: &mut DestinationState,
    event: DestinationEvent,
    parts: &mut dyn DestinationParts,
) -> Result<(), MigrateError> {
    let (actions, next) = state.on(event);
    for action in actions {
        match (action, act_at_destination(*action, parts)) {
            (_, Ok(())) => {}
            (DestinationAction::WriteClaim | DestinationAction::Activate, Err(error)) => {
                *state = next;
                drive_destination(state, DestinationEvent::TakeFailed, parts)?;
                return Err(error);
            }
            (_, Err(error)) => return Err(error),
        }
    }
    *state = next;
    Ok(())
}

/// Takes up an attempt after a crash of the daemon.
///
/// # Errors
/// If an action fails; it can be called again.
pub fn recover_destination(
    claim: bool,
    domain: FoundCopy,
    parts: &mut dyn DestinationParts,
) -> Result<DestinationState, MigrateError> {
    let (actions, state) = DestinationState::recover(claim, domain);
    actions.iter().try_for_each(|action| act_at_destination(*action, parts))?;
    Ok(state)
}

fn act_at_destination(
    action: DestinationAction,
    parts: &mut dyn DestinationParts,
) -> Result<(), MigrateError> {
    const SIDE: Side = Side::Destination;
    let of_claim = |source| MigrateError::Claim { side: SIDE, source };
    match action {
        DestinationAction::WriteClaim => parts.claim().write().map_err(of_claim),
        DestinationAction::RemoveClaim => parts.claim().remove().map_err(of_claim),
        DestinationAction::Activate => {
            parts.activate().map_err(|source| MigrateError::Domain { side: SIDE, source })
        }
        DestinationAction::Destroy => {
            parts.destroy();
            Ok(())
        }
        DestinationAction::Send(message) => {
            parts.send(message);
            Ok(())
        }
    }
}

#[cfg(test)]
mod model;
