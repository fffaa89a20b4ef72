//! `fcap-demo NAME`: what `cargo xtask demo NAME` runs.

use fcap_tests::demo;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["consolidate"] => demo::consolidate::run(),
        ["scale-up"] => demo::scale_up::run(),
        _ => anyhow::bail!("no demonstration {args:?}; there are consolidate and scale-up"),
    }
}
