//! Benchmarks and long runs: builds what they need and runs them.

use anyhow::Result;

use crate::run::{cargo, program, visibly};
use crate::{task_build, task_setup};

/// Runs `fcap-bench` or `fcap-soak` (of the crate `fcap-tests`) with `args`.
pub(crate) fn run(binary: &str, args: &[&str]) -> Result<()> {
    task_setup::run()?;
    task_build::run()?;
    crate::task_image::run(&["--variant", "compare"])?;
    visibly(&mut cargo(&["build", "--locked", "--release", "--package", "fcap-tests", "--bins"]))?;
    let binary = format!("target/release/{binary}");
    visibly(&mut program(&[&[&binary[..]], args].concat()))
}
