//! `fcap`: applications as capsules, handled like processes.

fn main() -> std::process::ExitCode {
    fcap_tools::cli::main().into()
}
