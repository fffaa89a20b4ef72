//! `fcap top`.

use super::sample::{Sampler, Usage, net_text, percent_text};
use crate::fleet::Fleet;
use crate::human::{cpu_time, size_kib};
use crate::output::short_id;
use crate::target::Globals;
use crate::terminal::one_line;
use anyhow::{Context as _, ensure};
use fcap_api::{Capsule, NetStats, Node, State};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table, TableState};
use ratatui::{DefaultTerminal, Frame};
use std::cmp::Ordering;
use std::io::IsTerminal as _;
use std::time::Duration;
use tokio::sync::mpsc;

/// Shows running capsules and their use of resources, live
///
/// Keys: c, m, t, i, n and s sort by processor use, memory, processor time, network, name and
/// state; r turns the order round; the arrows scroll; q ends.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Seconds between updates
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = parse_delay)]
    delay: Duration,
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("between 0.1 and 3600 seconds".into())
    }
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Cpu,
    Memory,
    Time,
    Net,
    Name,
    State,
}

/// One capsule on the screen.
#[derive(Clone, Debug)]
struct Entry {
    usage: Usage,
    state: State,
    node: String,
}

/// All that is on the screen.
#[derive(Debug)]
struct Screen {
    nodes: Vec<Node>,
    entries: Vec<Entry>,
    problem: Option<String>,
    key: Key,
    reversed: bool,
    table: TableState,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        ensure!(
            std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
            "top needs a terminal; `fcap stats --no-stream` prints the same once"
        );
        let fleet = globals.fleet().await?;
        let mut terminal = ratatui::try_init().context("the terminal")?;
        let outcome = self.watch(&fleet, &mut terminal).await;
        ratatui::restore();
        outcome.map(|()| 0)
    }

    async fn watch(&self, fleet: &Fleet, terminal: &mut DefaultTerminal) -> anyhow::Result<()> {
        let (keys, mut pressed) = mpsc::channel(16);
        // Ends with the process: nothing wakes a read of a terminal.
        std::thread::spawn(move || {
            while let Ok(event) = event::read() {
                if keys.blocking_send(event).is_err() {
                    return;
                }
            }
        });
        let mut sampler = Sampler::default();
        let mut screen = Screen::new();
        let mut ticks = tokio::time::interval(self.delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => screen.update(fleet, &mut sampler).await,
                event = pressed.recv() => match event {
                    Some(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                        if !screen.press(key) {
                            return Ok(());
                        }
                    }
                    Some(_) => {}
                    None => return Ok(()),
                },
            }
            screen.sort();
            terminal.draw(|frame| screen.draw(frame)).context("the terminal")?;
        }
    }
}

impl Screen {
    fn new() -> Self {
        Self {
            nodes: Vec::new(),
            entries: Vec::new(),
            problem: None,
            key: Key::Cpu,
            reversed: false,
            table: TableState::new().with_selected(0),
        }
    }

    async fn update(&mut self, fleet: &Fleet, sampler: &mut Sampler) {
        let (usage, capsules, nodes) = tokio::join!(
            sampler.sample(fleet),
            fleet.ask(|node| node.capsules(false)),
            fleet.ask(|node| node.node()),
        );
        self.problem = usage.failures.first().map(ToString::to_string);
        self.nodes = nodes.values;
        let capsules: Vec<Capsule> = capsules.values.concat();
        self.entries = usage
            .values
            .into_iter()
            .filter_map(|usage| {
                let capsule = capsules.iter().find(|capsule| capsule.id == usage.stats.id)?;
                Some(Entry { usage, state: capsule.state, node: capsule.node.clone() })
            })
            .collect();
    }

    /// False when it is time to go.
    fn press(&mut self, key: KeyEvent) -> bool {
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('c') => self.key = Key::Cpu,
            KeyCode::Char('m') => self.key = Key::Memory,
            KeyCode::Char('t') => self.key = Key::Time,
            KeyCode::Char('i') => self.key = Key::Net,
            KeyCode::Char('n') => self.key = Key::Name,
            KeyCode::Char('s') => self.key = Key::State,
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Down | KeyCode::Char('j') => self.table.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.table.select_previous(),
            KeyCode::PageDown => self.table.scroll_down_by(20),
            KeyCode::PageUp => self.table.scroll_up_by(20),
            _ => {}
        }
        true
    }

    fn sort(&mut self) {
        let by = |a: &Entry, b: &Entry| -> Ordering {
            let (x, y) = (&a.usage.stats, &b.usage.stats);
            let net = |it: Option<NetStats>| it.map_or(0, |net| net.rx_bytes.saturating_add(net.tx_bytes));
            let cpu = |it: &Entry| it.usage.cpu_percent.unwrap_or(0.0);
            match self.key {
                Key::Cpu => cpu(b).total_cmp(&cpu(a)),
                Key::Memory => y.memory_kib.cmp(&x.memory_kib),
                Key::Time => y.cpu_time_ns.cmp(&x.cpu_time_ns),
                Key::Net => net(y.net).cmp(&net(x.net)),
                Key::Name => Ordering::Equal,
                Key::State => word(a.state).cmp(word(b.state)),
            }
            .then_with(|| x.name.cmp(&y.name))
        };
        self.entries.sort_by(by);
        if self.reversed {
            self.entries.reverse();
        }
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let top = u16::try_from(self.nodes.len()).unwrap_or(u16::MAX).min(frame.area().height / 3);
        let [nodes, body, foot] =
            Layout::vertical([Constraint::Length(top), Constraint::Min(2), Constraint::Length(1)])
                .areas(frame.area());
        let lines: Vec<Line<'_>> = self.nodes.iter().map(|node| Line::raw(node_line(node))).collect();
        frame.render_widget(Paragraph::new(lines), nodes);
        let head =
            ["CAPSULE ID", "NAME", "NODE", "STATE", "CPU %", "CPU TIME", "MEM", "NET I/O", "CAP", "WEIGHT"];
        let widths = [12, 24, 12, 10, 8, 9, 9, 19, 6, 6].map(Constraint::Length);
        let rows = self.entries.iter().map(|Entry { usage, state, node }| {
            let stats = &usage.stats;
            Row::new([
                short_id(&stats.id, false),
                one_line(&stats.name),
                one_line(node),
                word(*state).to_owned(),
                percent_text(usage.cpu_percent),
                cpu_time(stats.cpu_time_ns),
                size_kib(stats.memory_kib),
                net_text(stats.net),
                if stats.cpu_cap == 0 { "-".to_owned() } else { format!("{}%", stats.cpu_cap) },
                stats.weight.to_string(),
            ])
        });
        let reversed = Style::new().add_modifier(Modifier::REVERSED);
        let table = Table::new(rows, widths)
            .header(Row::new(head).style(reversed))
            .row_highlight_style(Style::new().add_modifier(Modifier::BOLD));
        frame.render_stateful_widget(table, body, &mut self.table);
        let help =
            "sort: c cpu  m memory  t time  i network  n name  s state   r reverse   q quit".to_owned();
        frame.render_widget(Paragraph::new(self.problem.as_deref().map_or(help, one_line)), foot);
    }
}

fn node_line(node: &Node) -> String {
    format!(
        "{}: {} capsules, {} of {} free, {} processors, {}",
        one_line(&node.name),
        node.capsules,
        size_kib(node.free_memory_kib),
        size_kib(node.memory_kib),
        node.cpus,
        one_line(&node.hypervisor),
    )
}

fn word(state: State) -> &'static str {
    match state {
        State::Created => "created",
        State::Running => "running",
        State::Paused => "paused",
        State::Stopping => "stopping",
        State::Restarting => "restarting",
        State::Exited => "exited",
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::stats;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen() -> Screen {
        let entry = |id: &str, percent, cpu_time_ns, state| Entry {
            usage: Usage { cpu_percent: percent, stats: stats(id, 0, cpu_time_ns) },
            state,
            node: "node1".into(),
        };
        let mut screen = Screen::new();
        screen.entries = vec![
            entry("b", None, 9_000_000_000, State::Running),
            entry("a", Some(1.0), 0, State::Running),
            entry("c", Some(50.0), 1, State::Paused),
        ];
        screen
    }

    fn order(screen: &Screen) -> String {
        screen.entries.iter().map(|entry| entry.usage.stats.id.as_str()).collect()
    }

    #[test]
    fn keys_sort_and_end() {
        let mut screen = screen();
        let mut sorted = |key| {
            assert!(screen.press(KeyCode::Char(key).into()));
            screen.sort();
            order(&screen)
        };
        assert_eq!(sorted('c'), "cab");
        assert_eq!(sorted('n'), "abc");
        assert_eq!(sorted('t'), "bca");
        assert_eq!(sorted('s'), "cab");
        assert_eq!(sorted('r'), "bac");
        assert!(!screen.press(KeyCode::Char('q').into()));
        assert!(!screen.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    }

    #[test]
    fn the_screen_shows_each_capsule() {
        let mut terminal = Terminal::new(TestBackend::new(120, 8)).unwrap();
        let mut screen = screen();
        screen.sort();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let text = terminal.backend().to_string();
        for part in ["CAPSULE ID", "name-a", "paused", "50.00%", "9.00s", "1.5KiB / 10B", "q quit"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
