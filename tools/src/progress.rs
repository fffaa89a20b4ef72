//! Progress of slow steps, on standard error: a bar for a person, a line otherwise.

use crate::human;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal as _;

/// Transfers below this are over before a bar could be read.
const SLOW_BYTES: u64 = 1 << 20;

/// A transfer of so many bytes.
pub fn transfer(what: &str, bytes: u64) -> ProgressBar {
    if bytes < SLOW_BYTES {
        return ProgressBar::hidden();
    }
    if !std::io::stderr().is_terminal() {
        eprintln!("fcap: {what} ({})", human::size(bytes));
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {eta}")
        .expect("the template is well-formed");
    ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr())
        .with_style(style)
        .with_message(what.to_owned())
}

/// Steps of something slow whose length nobody knows: a spinner for a person, lines otherwise.
#[derive(Debug)]
pub struct Steps(Option<ProgressBar>);

impl Steps {
    /// No step yet.
    #[allow(clippy::new_without_default)] // it starts to draw
    pub fn new() -> Self {
        Self(std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            bar
        }))
    }

    /// Says something that stays.
    pub fn say(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.println(format!("fcap: {text}")),
            None => eprintln!("fcap: {text}"),
        }
    }

    /// The step that begins.
    pub fn step(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.set_message(text.to_owned()),
            None => eprintln!("fcap: {text}"),
        }
    }

    /// All is done, or has failed.
    pub fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
