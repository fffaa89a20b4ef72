//! The node image is the same bytes from the same inputs.

use std::fs;
use std::path::Path;
use std::process::Command;

use fcap_tests::cli;

const VARIANTS: [&str; 5] = ["node", "xl", "xl-4.17.5", "bench", "guest"];

/// Builds all variants without fcapd, whose own build is another matter.
fn build(out: &Path) {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["xtask", "image", "--no-fcapd", "--out"])
        .arg(out)
        .current_dir(cli::tree())
        .status()
        .expect("cargo can be run");
    assert!(status.success());
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    build(&one);
    build(&two);
    for variant in VARIANTS {
        let mut files = 0;
        for entry in fs::read_dir(one.join(variant)).unwrap() {
            let path = Path::new(variant).join(entry.unwrap().file_name());
            let same = fs::read(one.join(&path)).unwrap() == fs::read(two.join(&path)).unwrap();
            assert!(same, "{} differs", path.display());
            files += 1;
        }
        assert!(files >= 4, "{variant} has {files} files");
    }
}

#[test]
fn an_image_that_is_up_to_date_is_not_built_again() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path());
    let written =
        |variant: &str| fs::metadata(dir.path().join(variant).join("id")).unwrap().modified().unwrap();
    let before = VARIANTS.map(written);
    build(dir.path());
    assert_eq!(VARIANTS.map(written), before);
}
