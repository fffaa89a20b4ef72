//! new, build, completion, man.

use crate::rig::{Output, fcap, finished};
use std::path::Path;

fn call(folder: &Path, args: &[&str]) -> Output {
    finished(fcap(args).current_dir(folder).spawn().unwrap())
}

#[test]
fn a_new_application_builds_and_is_found_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let made = call(folder.path(), &["new", "greeter"]);
    assert_eq!(made.code, 0, "{made:?}");
    assert!(made.stdout.contains("cd greeter && fcap build && fcap run greeter"), "{made:?}");
    assert_eq!(call(folder.path(), &["new", "greeter"]).code, 1);
    let app = folder.path().join("greeter");
    let built = call(&app, &["build"]);
    assert_eq!(built.code, 0, "{built:?}");
    assert!(built.stdout.starts_with("target/capsule/greeter ("), "{built:?}");
    let size = app.join("target/capsule/greeter").metadata().unwrap().len();
    assert!(size < 64 * 1024, "{size}");

    let elsewhere = folder.path().join("images");
    let args = ["build", "--manifest-path", "greeter/Cargo.toml", "--bin", "greeter", "--locked", "--out"];
    let args = [&args[..], &[elsewhere.to_str().unwrap()]].concat();
    assert_eq!(call(folder.path(), &args).code, 0);
    assert!(elsewhere.join("greeter").is_file());

    // What is no application is refused, with the reason.
    std::fs::write(app.join("src/main.rs"), "fn main() { println!(\"{:?}\", std::env::args()); }").unwrap();
    let refused = call(&app, &["build"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("fcap: "), "{refused:?}");
}

#[test]
fn packages_that_are_not_there_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = call(folder.path(), &["build"]);
    assert_eq!(nothing.code, 1);
    assert!(nothing.stderr.contains("fcap new"), "{nothing:?}");
    let bad = call(folder.path(), &["new", "1 2"]);
    assert!(bad.stderr.contains("not a name"), "{bad:?}");
    let bad = call(folder.path(), &["new", "x", "--libos", "/none"]);
    assert!(bad.stderr.contains("--libos"), "{bad:?}");
}

#[test]
fn shells_and_the_manual_are_served() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = call(folder.path(), &["completion", shell]);
        assert!(output.code == 0 && output.stdout.contains("unpause"), "{shell}");
    }
    assert_eq!(call(folder.path(), &["man", "pages"]).code, 0);
    let run = std::fs::read_to_string(folder.path().join("pages/fcap-run.1")).unwrap();
    assert!(run.contains("cpu") && run.contains("125"), "{run}");
    let help = call(folder.path(), &["run", "--help"]);
    assert!(help.stdout.contains("Exit codes") && help.stdout.contains("Resources:"), "{help:?}");
    let help = call(folder.path(), &["--help"]);
    for group in ["Run:", "Look:", "Options:"] {
        assert!(help.stdout.contains(group), "{help:?}");
    }
}
