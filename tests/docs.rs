//! What README.md and the pages in `docs/` tell people to type, typed.
//!
//! Each page's `console` blocks are one session of a shell in an empty folder: a line that
//! begins with `$ ` is a command, and each must succeed. What follows a log for ever is
//! interrupted after a while, as people do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use fcap_tests::cli::tree;

/// Seconds for which a log is followed.
const FOLLOW: u32 = 2;
/// What `timeout` ends with when it had to interrupt.
const INTERRUPTED: u32 = 124;

/// The commands of a page, but for blocks that set the tree up, which is done already.
fn commands(page: &str) -> Vec<String> {
    let blocks = page.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    blocks
        .filter(|block| !block.contains("cargo xtask"))
        .flat_map(str::lines)
        .filter_map(|line| line.strip_prefix("$ "))
        .map(|line| match line.split_once(" logs -f ") {
            Some((fcap, rest)) => {
                format!("timeout -s INT {FOLLOW} {fcap} logs -f {rest} || [ $? = {INTERRUPTED} ]")
            }
            None => line.to_owned(),
        })
        .collect()
}

/// Types a page's commands, and takes down the cloud that they have started.
fn type_all(page: &Path) {
    let text = fs::read_to_string(page).unwrap();
    let commands = commands(&text);
    assert!(!commands.is_empty(), "{} has no commands", page.display());
    let home = tempfile::tempdir().unwrap();
    symlink(tree().join("target"), home.path().join("target")).unwrap();
    fs::write(home.path().join("book.txt"), text).unwrap();
    let fcap = tree().join("target/release");
    let shell = |script: &str| {
        let path = format!("{}:{}", fcap.display(), std::env::var("PATH").unwrap());
        let output = Command::new("sh")
            .args(["-euxc", script])
            .current_dir(home.path())
            .env("PATH", path)
            .env("XDG_DATA_HOME", home.path().join("data"))
            .env_remove("FCAP_HOST")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), format!("{said}{}", String::from_utf8_lossy(&output.stdout)))
    };
    let (fine, said) = shell(&commands.join("\n"));
    let (down, last) = shell("fcap cloud down");
    assert!(fine, "{}: {said}", page.display());
    assert!(down, "{last}");
}

#[test]
fn the_readme_can_be_typed() {
    type_all(&tree().join("README.md"));
}

#[test]
fn every_page_for_people_can_be_typed() {
    for page in fs::read_dir(tree().join("docs")).unwrap() {
        let page = page.unwrap().path();
        if page.extension().is_some_and(|extension| extension == "md") {
            type_all(&page);
        }
    }
}
