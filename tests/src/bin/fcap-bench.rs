//! `fcap-bench NAME`: what `cargo xtask bench NAME` runs.

use fcap_tests::bench::migrate;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let figures = match args[..] {
        ["run"] => fcap_tests::bench::run::run()?,
        ["run", "--net"] => fcap_tests::bench::net::run()?,
        ["density"] => fcap_tests::bench::density::run()?,
        ["cloud"] => fcap_tests::bench::cloud::run()?,
        ["http"] => fcap_tests::bench::http::run()?,
        ["kv"] => fcap_tests::bench::kv::run()?,
        ["tcp"] => fcap_tests::bench::tcp::run()?,
        ["policy"] => fcap_tests::bench::policy::run()?,
        ["ps"] => fcap_tests::bench::ps::run()?,
        // What that starts.
        ["ps", "--nodes", authority] => return fcap_tests::bench::ps::nodes(authority.as_ref()),
        ["drain"] => fcap_tests::bench::drain::run()?,
        ["migrate"] => migrate::run(migrate::Extent::All)?,
        ["migrate", "--quick"] => migrate::run(migrate::Extent::Quick)?,
        _ => anyhow::bail!(
            "no benchmark {args:?}; there are run [--net], density, cloud, http, kv, tcp, drain, policy, ps, migrate [--quick]"
        ),
    };
    println!("{figures}");
    Ok(())
}
