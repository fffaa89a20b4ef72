//! How a run ended, and whether another one follows.

use std::time::Duration;

use fcap_api::{End, EndReason, RestartPolicy};
use xen_proto::console::EndKind;

use crate::names::printable;
use crate::toolstack::{Epitaph, Shutdown};

/// Most bytes of an end's message.
const MAX_MESSAGE: usize = 1000;
/// The first restart comes after this time, each further one after twice the time.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// But none after more than this.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A run that was longer than this begins a new row of restarts.
pub const LONG_RUN: Duration = Duration::from_secs(10);

/// Judges the end of a run from what the hypervisor and the capsule itself say; the latter
/// may be a lie, but then only about the capsule itself.
pub fn judge(
    shutdown: Option<Shutdown>,
    epitaph: Option<Epitaph>,
    asked_to_stop: bool,
    ended_ms: u64,
) -> End {
    let plain = |exit_code, reason, message: Option<&str>| End {
        exit_code,
        reason,
        message: message.map(str::to_owned),
        backtrace: Vec::new(),
        ended_ms,
    };
    let crashed = matches!(shutdown, Some(Shutdown::Crash | Shutdown::Watchdog));
    if let Some(epitaph) = epitaph {
        // As a shell would see it.
        let own = epitaph.exit_code & 0xff;
        let told = match epitaph.kind {
            EndKind::Exited if crashed => None,
            EndKind::Exited if asked_to_stop => Some((own, EndReason::Stopped)),
            EndKind::Exited => Some((own, EndReason::Exited)),
            EndKind::Stopped => Some((own, EndReason::Stopped)),
            EndKind::Panicked => Some((101, EndReason::Panicked)),
            EndKind::OutOfMemory => Some((134, EndReason::OutOfMemory)),
            EndKind::Fault => Some((139, EndReason::Crashed)),
        };
        if let Some((exit_code, reason)) = told {
            let message = printable(&epitaph.message, MAX_MESSAGE);
            return End {
                exit_code,
                reason,
                message: (!message.is_empty()).then_some(message),
                backtrace: epitaph.backtrace.iter().map(|address| format!("{address:#x}")).collect(),
                ended_ms,
            };
        }
    }
    match shutdown {
        None => plain(137, EndReason::Killed, Some("its domain was destroyed by somebody else")),
        Some(Shutdown::Poweroff) if asked_to_stop => plain(143, EndReason::Stopped, None),
        Some(Shutdown::Poweroff) => plain(0, EndReason::Exited, None),
        Some(Shutdown::Reboot) => plain(0, EndReason::Exited, Some("it asked to be rebooted")),
        Some(Shutdown::Suspend) => {
            plain(139, EndReason::Crashed, Some("it suspended itself, and nobody had asked"))
        }
        Some(Shutdown::Crash) => plain(139, EndReason::Crashed, Some("its domain crashed")),
        Some(Shutdown::Watchdog) => plain(139, EndReason::Crashed, Some("its watchdog ran out")),
    }
}

/// An end that is not the capsule's own doing.
pub fn without_epitaph(exit_code: i32, reason: EndReason, message: Option<String>, ended_ms: u64) -> End {
    End { exit_code, reason, message, backtrace: Vec::new(), ended_ms }
}

/// Whether a run is followed by another one, and after what time. `streak` counts the
/// restarts in a row before this one.
pub fn restart(policy: RestartPolicy, end: &End, streak: u32) -> Option<Duration> {
    let again = match policy {
        RestartPolicy::No => false,
        RestartPolicy::OnFailure { max_retries } => {
            end.exit_code != 0 && max_retries.is_none_or(|most| streak < most)
        }
        RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
    };
    again.then(|| FIRST_DELAY.saturating_mul(1 << streak.min(20)).min(LONGEST_DELAY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epitaph(kind: EndKind, exit_code: i32, message: &str) -> Option<Epitaph> {
        Some(Epitaph { kind, exit_code, message: message.into(), backtrace: vec![0x10, 0x20] })
    }

    #[test]
    fn an_end_has_the_code_and_reason_that_are_due() {
        use EndKind as K;
        use EndReason as R;
        let off = Some(Shutdown::Poweroff);
        let crash = Some(Shutdown::Crash);
        for (shutdown, epitaph, asked, code, reason) in [
            (off, epitaph(K::Exited, 3, ""), false, 3, R::Exited),
            (off, epitaph(K::Exited, 256 + 7, ""), false, 7, R::Exited),
            (off, epitaph(K::Exited, -1, ""), false, 255, R::Exited),
            (off, epitaph(K::Exited, 3, ""), true, 3, R::Stopped),
            (off, epitaph(K::Stopped, 143, ""), true, 143, R::Stopped),
            (off, epitaph(K::Panicked, 0, "p"), false, 101, R::Panicked),
            (off, epitaph(K::OutOfMemory, 0, "p"), false, 134, R::OutOfMemory),
            (crash, epitaph(K::Fault, 0, "p"), false, 139, R::Crashed),
            (crash, epitaph(K::Exited, 0, ""), false, 139, R::Crashed),
            (crash, None, false, 139, R::Crashed),
            (off, None, false, 0, R::Exited),
            (off, None, true, 143, R::Stopped),
            (None, None, false, 137, R::Killed),
        ] {
            let end = judge(shutdown, epitaph, asked, 1);
            assert_eq!((end.exit_code, end.reason), (code, reason));
        }
    }

    #[test]
    fn a_message_is_printable_and_bounded() {
        let end = judge(None, epitaph(EndKind::Panicked, 0, "a\u{1b}[2J\n"), false, 1);
        assert_eq!(end.message.as_deref(), Some("a\\u{1b}[2J"));
        let end = judge(None, epitaph(EndKind::Panicked, 0, &"x".repeat(5000)), false, 1);
        assert_eq!(end.message.map(|message| message.len()), Some(MAX_MESSAGE));
        assert_eq!(end.backtrace, ["0x10", "0x20"]);
    }

    #[test]
    fn restarts_follow_the_policy_and_back_off() {
        let end = |code| without_epitaph(code, EndReason::Exited, None, 1);
        let ms = |policy, code, streak| restart(policy, &end(code), streak).map(|delay| delay.as_millis());
        let failure = RestartPolicy::OnFailure { max_retries: Some(2) };
        assert_eq!(ms(RestartPolicy::No, 1, 0), None);
        assert_eq!((ms(failure, 0, 0), ms(failure, 1, 1), ms(failure, 1, 2)), (None, Some(200), None));
        let always = RestartPolicy::Always;
        assert_eq!(
            (ms(always, 0, 0), ms(always, 0, 5), ms(always, 0, 4_000_000)),
            (Some(100), Some(3200), Some(60_000))
        );
    }
}
