//! Tasks of the project, run as `cargo xtask TASK`: one `task_*.rs` a task.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use lexopt::Arg::{Long, Short, Value};

mod image;
mod run;
mod task_bench;
mod task_build;
mod task_demo;
mod task_image;
mod task_setup;
mod task_soak;
mod task_test;

type Run = fn(lexopt::Parser) -> Result<()>;

/// Name, what it does, its help, itself.
const TASKS: &[(&str, &str, &str, Run)] = &[
    ("demo", "install, build, run real programs in a local cloud, clean up", task_demo::HELP, task_demo::run),
    ("test", "formatting, clippy, docs, all tests", task_test::HELP, task_test::run),
    ("build", "build fcap, fcapd, the examples and the node image", task_build::HELP, task_build::run),
    ("bench", "compare with a peer", task_bench::HELP, task_bench::run),
    ("soak", "long runs", task_soak::HELP, task_soak::run),
    ("setup", "install the Debian packages that are missing", task_setup::HELP, task_setup::run),
    ("image", "build the node image", task_image::HELP, task_image::run),
];

/// The source tree that this program was built from.
fn tree() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_path_buf()
}

fn main() -> ExitCode {
    match dispatch() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<ExitCode> {
    let mut args = lexopt::Parser::from_env();
    let name = match args.next()? {
        Some(Value(name)) => name,
        Some(Long("help") | Short('h')) => {
            println!("{}", usage());
            return Ok(ExitCode::SUCCESS);
        }
        Some(other) => return Err(other.unexpected().into()),
        None => {
            eprintln!("{}", usage());
            return Ok(ExitCode::from(2));
        }
    };
    let Some((_, _, help, run)) = TASKS.iter().find(|task| name == task.0) else {
        eprintln!("xtask: there is no task {name:?}\n{}", usage());
        return Ok(ExitCode::from(2));
    };
    // Looked for ahead, so that no task has to.
    if std::env::args_os().skip(2).any(|arg| arg == "--help" || arg == "-h") {
        println!("{help}");
        return Ok(ExitCode::SUCCESS);
    }
    run(args)?;
    Ok(ExitCode::SUCCESS)
}

fn usage() -> String {
    let mut text = String::from("cargo xtask TASK (`--help` after a task tells more)\n");
    for (name, summary, _, _) in TASKS {
        text.push_str(&format!("  {name:8} {summary}\n"));
    }
    text.trim_end().to_owned()
}
