//! All tests, one line a suite; what CI runs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use lexopt::Arg::Long;

use crate::image::list::Variant;
use crate::run::{cargo, logged, program, visibly};
use crate::{task_build, task_setup, tree};

pub(crate) const HELP: &str = "\
cargo xtask test [--quick]

Formatting, clippy with warnings denied, documentation, unit and property tests, the APIs
against their documents, end-to-end tests on real Xen: one line a suite. The whole output is in target/logs.
  --quick  without real Xen";

/// Lines of a failed suite's output that are shown, where it does not say itself what failed.
const TAIL: usize = 60;
/// Most lines of output of failed tests that are shown.
const MOST: usize = 400;
/// What tries the APIs.
const REQUIREMENTS: &str = "tests/conformance/requirements.txt";

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    /// Runs one suite. Test runners' own counts are taken where there are some; another
    /// command counts as one test.
    fn suite(&mut self, name: &str, command: &mut Command) -> Result<bool> {
        eprintln!("     ... {name}");
        let done = logged(name, command)?;
        let (mut passed, mut failed) = counts(&done.output);
        if passed + failed == 0 || (failed == 0 && !done.success) {
            passed += u32::from(done.success);
            failed += u32::from(!done.success);
        }
        self.passed += passed;
        self.failed += failed;
        let verdict = if failed == 0 { "ok" } else { "FAILED" };
        println!("{verdict:>6}  {name:<24} {passed:>4} passed, {failed} failed  ({:.0} s)", done.seconds);
        if failed > 0 {
            println!("{}", failures(&done.output));
            println!(
                "the whole output is in {}",
                done.log.strip_prefix(tree()).unwrap_or(&done.log).display()
            );
        }
        Ok(failed == 0)
    }
}

pub(crate) fn run(mut args: lexopt::Parser) -> Result<()> {
    let mut quick = false;
    while let Some(arg) = args.next()? {
        match arg {
            Long("quick") => quick = true,
            _ => return Err(arg.unexpected().into()),
        }
    }
    task_setup::ensure_installed()?;
    let mut tally = Tally::default();
    let t = &mut tally;
    t.suite("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    t.suite(
        "clippy",
        &mut cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
    )?;
    t.suite(
        "clippy end-to-end",
        cargo(&["clippy", "--locked", "--workspace"])
            .args(task_build::E2E)
            .args(["--", "--deny", "warnings"]),
    )?;
    t.suite(
        "docs",
        cargo(&["doc", "--locked", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"),
    )?;
    // The end-to-end tests are for later.
    t.suite("unit and property", &mut cargo(&["test", "--locked", "--workspace", "--no-fail-fast"]))?;
    let mut examples = vec!["test", "--locked", "--manifest-path", "libos/examples/Cargo.toml"];
    examples.extend(["--package", "http-core", "--package", "kv-core"]);
    t.suite("examples without libos", &mut cargo(&examples))?;
    // All packages, as before: another choice has cargo build everything again with other features.
    let mut api = cargo(&["test", "--locked", "--workspace", "--test", "controller"]);
    t.suite("api", api.args(["conformance", "--", "--ignored"]).env("FCAP_SCHEMATHESIS", schemathesis()?))?;
    if !quick {
        end_to_end(t)?;
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

/// Where schemathesis is, which tries the APIs; installed if it is not there, or another one.
fn schemathesis() -> Result<PathBuf> {
    let (venv, wanted) = (tree().join("target/conformance"), tree().join(REQUIREMENTS));
    // Written last, so that half an installation counts as none.
    let installed = venv.join("requirements.txt");
    if fs::read(&installed).ok() != Some(fs::read(&wanted)?) {
        let folder = venv.display().to_string();
        visibly(&mut program(&["python3", "-m", "venv", "--clear", &folder]))?;
        let python = format!("{folder}/bin/python3");
        let pip = [&python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", REQUIREMENTS];
        visibly(&mut program(&pip))?;
        fs::copy(&wanted, &installed)?;
    }
    Ok(venv.join("bin/schemathesis"))
}

fn end_to_end(t: &mut Tally) -> Result<()> {
    let built = t.suite("build", task_build::with_tests("build").args(["--lib", "--bins"]))?;
    if !built {
        return Ok(());
    }
    eprintln!("     ... images");
    task_build::around(&[Variant::Node, Variant::Xl, Variant::XlLogDirty, Variant::Guest])?;
    for package in ["libos/examples", "tests/guests"] {
        let manifest = format!("{package}/Cargo.toml");
        let name = package.replace('/', " ");
        t.suite(
            &format!("format {name}"),
            &mut cargo(&["fmt", "--all", "--manifest-path", &manifest, "--check"]),
        )?;
        let mut clippy = vec!["clippy", "--locked", "--workspace", "--manifest-path", &manifest];
        clippy.extend(["--", "--deny", "warnings"]);
        t.suite(&format!("clippy {name}"), &mut cargo(&clippy))?;
    }
    t.suite("end-to-end", task_build::with_tests("test").arg("--no-fail-fast"))?;
    for name in ["restart", "churn", "net", "serve", "memory", "faults", "control"] {
        let mut soak = program(&["target/release/fcap-soak", name, "--short"]);
        t.suite(&format!("soak {name}"), &mut soak)?;
    }
    for name in ["scale-up", "consolidate"] {
        t.suite(&format!("demo {name}"), &mut program(&["target/release/fcap-demo", name]))?;
    }
    Ok(())
}

/// Sums the `test result:` lines of libtest.
fn counts(output: &str) -> (u32, u32) {
    let mut sum = (0, 0);
    for line in output.lines().filter(|line| line.starts_with("test result:")) {
        let number = |word: &str| -> u32 {
            let before = line.split(word).next().unwrap_or("");
            before.split_whitespace().next_back().and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        sum.0 += number(" passed");
        sum.1 += number(" failed");
    }
    sum
}

/// What a failed suite has to say: the output of failed tests, and their names, as libtest lists
/// them; of other commands the end.
fn failures(output: &str) -> String {
    let mut lines = Vec::new();
    let mut inside = false;
    for line in output.lines() {
        // Once before the tests' output and once before their names.
        inside |= line == "failures:";
        inside &= !line.starts_with("test result:");
        if inside {
            lines.push(line);
        }
    }
    if lines.is_empty() {
        lines = output.lines().collect();
        lines.drain(..lines.len().saturating_sub(TAIL));
    }
    if lines.len() > MOST {
        // The names are at the end, the first failure at the beginning.
        lines.splice(MOST / 2..lines.len() - MOST / 2, ["[...]"]);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_are_summed() {
        let output = "test result: ok. 12 passed; 0 failed; 0 ignored\nother\n\
                      test result: FAILED. 3 passed; 2 failed; 1 ignored";
        assert_eq!(counts(output), (15, 2));
        assert_eq!(counts("nothing"), (0, 0));
    }

    #[test]
    fn failed_tests_are_shown_with_their_output() {
        let output = "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\n\
                      it went wrong\n\n\nfailures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed\n\
                      running 1 test\ntest c ... ok\ntest result: ok. 1 passed; 0 failed\n";
        let shown = failures(output);
        assert!(shown.contains("it went wrong") && shown.contains("    b"), "{shown}");
        assert!(!shown.contains("test c"), "{shown}");
    }

    #[test]
    fn of_other_commands_the_end_is_shown() {
        let output: String = (0..1000).map(|i| format!("line {i}\n")).collect();
        let shown = failures(&output);
        assert!(shown.starts_with("line 940\n") && shown.ends_with("line 999"), "{shown}");
    }

    #[test]
    fn very_long_failures_are_cut_in_the_middle() {
        let output: String = (0..1000).map(|i| format!("line {i}\n")).collect();
        let shown = failures(&format!("failures:\n{output}failures:\n    b\ntest result: FAILED."));
        assert!(shown.contains("line 0\n") && shown.ends_with("    b"), "{shown}");
        assert_eq!(shown.lines().count(), MOST + 1);
    }
}
