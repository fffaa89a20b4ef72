//! `fcap-bench NAME`: what `cargo xtask bench NAME` runs.

fn main() -> anyhow::Result<()> {
    let name = std::env::args().nth(1).unwrap_or_default();
    let figures = match &name[..] {
        "run" => fcap_tests::bench::run::run()?,
        "density" => fcap_tests::bench::density::run()?,
        "cloud" => fcap_tests::bench::cloud::run()?,
        _ => anyhow::bail!("no benchmark {name:?}; there are run, density, cloud"),
    };
    println!("{figures}");
    Ok(())
}
