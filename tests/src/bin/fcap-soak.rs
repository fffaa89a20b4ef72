//! `fcap-soak NAME [--short] [--seed N]`: what `cargo xtask soak NAME` runs.

use fcap_tests::soak;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let short = args.iter().any(|arg| arg == "--short");
    let seed = match args.iter().position(|arg| arg == "--seed") {
        Some(i) => args.get(i + 1).and_then(|seed| seed.parse().ok()).ok_or_else(|| {
            anyhow::anyhow!("--seed wants a number, for example the one that an earlier run printed")
        })?,
        None => rand::random(),
    };
    match args.first().map(String::as_str) {
        Some("restart") => soak::restart::run(if short { 5 } else { 50 }, seed),
        Some("churn") => soak::churn::run(if short { 50 } else { 1000 }),
        Some("net") => soak::net::run(if short { 50 } else { 10_000 }),
        Some("serve") => soak::serve::run(if short { 4 } else { 100 }),
        Some("memory") => soak::memory::run(if short { 4 } else { 200 }),
        Some("control") => soak::control::run(if short { 8 } else { 200 }, seed),
        Some("faults") => soak::faults::run(if short { 8 } else { 500 }, seed),
        _ => anyhow::bail!("which one? there are restart, churn, net, serve, memory, faults, control"),
    }
}
