//! The local cloud with real machines: what is up, what goes down, and what `kill -9` leaves.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fcap_tests::cli;
use fcap_tests::rig::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A user's folders of their own. Templates come from the real cache unless said otherwise,
/// since each takes a boot.
struct Home {
    data: tempfile::TempDir,
    cache: Option<tempfile::TempDir>,
}

impl Home {
    fn new() -> Self {
        Self { data: tempfile::tempdir().unwrap(), cache: None }
    }

    fn with_own_cache() -> Self {
        Self { data: tempfile::tempdir().unwrap(), cache: Some(tempfile::tempdir().unwrap()) }
    }

    fn fcap(&self, cloud: &str, args: &[&str]) -> Command {
        let program = std::env::var_os("FCAP_BIN")
            .map_or_else(|| cli::tree().join("target/release/fcap"), std::path::PathBuf::from);
        let mut command = Command::new(program);
        command.args(["--cloud", cloud, "cloud"]).args(args).env("XDG_DATA_HOME", self.data.path());
        command.env_remove("FCAP_HOST");
        if let Some(cache) = &self.cache {
            command.env("XDG_CACHE_HOME", cache.path());
        }
        command
    }

    fn call(&self, cloud: &str, args: &[&str]) -> Output {
        self.fcap(cloud, args).stdin(Stdio::null()).output().expect("target/release/fcap is there")
    }

    fn ok(&self, cloud: &str, args: &[&str]) -> String {
        let output = self.call(cloud, args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn spawn(&self, cloud: &str, args: &[&str]) -> Child {
        self.fcap(cloud, args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// The nodes of one cloud, as `cloud ls` has them.
    fn nodes(&self, cloud: &str) -> Vec<Value> {
        let clouds: Value = serde_json::from_str(&self.ok(cloud, &["ls", "-o", "json"])).unwrap();
        let all = clouds.as_array().unwrap();
        let found = all.iter().find(|listed| listed["name"] == cloud);
        found.map(|listed| listed["nodes"].as_array().unwrap().clone()).unwrap_or_default()
    }

    /// Machines whose command line names one of this home's folders.
    fn machines(&self) -> usize {
        let folders = std::iter::once(self.data.path()).chain(self.cache.as_ref().map(|cache| cache.path()));
        let folders: Vec<String> = folders.map(|path| path.to_string_lossy().into_owned()).collect();
        let lines = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines
            .filter(|line| {
                let line = String::from_utf8_lossy(line);
                line.contains("-pidfile") && folders.iter().any(|folder| line.contains(folder.as_str()))
            })
            .count()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.fcap("any", &["down", "--all"]).output();
    }
}

fn pid(node: &Value) -> i32 {
    i32::try_from(node["pid"].as_i64().unwrap()).unwrap()
}

#[test]
fn clouds_live_side_by_side_and_end_apart() {
    let home = Home::new();
    let (mut one, mut two) = (home.spawn("one", &["up", "-n", "2"]), home.spawn("two", &["up"]));
    assert!(one.wait().unwrap().success() && two.wait().unwrap().success());
    let names =
        |cloud: &str| home.nodes(cloud).iter().map(|node| node["name"].to_string()).collect::<Vec<_>>();
    assert_eq!(names("one"), ["\"node1\"", "\"node2\""]);
    assert_eq!(names("two"), ["\"node1\""]);
    home.ok("one", &["down"]);
    assert_eq!(names("two"), ["\"node1\""]);
    assert_eq!(home.machines(), 1);
    home.ok("two", &["down"]);
    assert_eq!(home.machines(), 0);
    assert_eq!(fs::read_dir(home.data.path().join("fcap/clouds")).unwrap().count(), 0);
}

#[test]
fn two_who_bring_up_the_same_cloud_both_get_a_node() {
    let home = Home::new();
    let (mut one, mut two) = (home.spawn("both", &["up"]), home.spawn("both", &["up"]));
    assert!(one.wait().unwrap().success() && two.wait().unwrap().success());
    assert_eq!(home.nodes("both").len(), 2);
}

#[test]
fn a_machine_that_was_killed_is_forgotten() {
    let home = Home::new();
    home.ok("killed", &["up", "-n", "2"]);
    let victim = pid(&home.nodes("killed")[0]);
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    wait_until("the cloud forgets the machine", || Ok(home.nodes("killed").len() == 1)).unwrap();
    assert_eq!(home.nodes("killed")[0]["name"], "node2");
    // Its name is free again.
    home.ok("killed", &["up"]);
    assert_eq!(home.nodes("killed").len(), 2);
    home.ok("killed", &["down"]);
    assert_eq!(home.machines(), 0);
}

/// Kills `fcap cloud up` after `delay` and expects the next command to find nothing, or the
/// complete cloud.
fn kill_while_coming_up(home: &Home, delay: Duration) {
    let mut up = home.spawn("cut", &["up", "-n", "2"]);
    // Not to wait for anything: any moment is a good one to be killed.
    std::thread::sleep(delay);
    up.kill().unwrap();
    up.wait().unwrap();
    let nodes = home.nodes("cut").len();
    assert_eq!(home.machines(), nodes, "killed after {delay:?}: {nodes} nodes are listed");
    home.ok("cut", &["down"]);
    assert_eq!(home.machines(), 0, "killed after {delay:?}");
}

#[test]
fn killing_fcap_while_nodes_come_up_leaves_no_machine() {
    let home = Home::new();
    // So that there is a template, and a clone's start is what is cut off.
    home.ok("warm", &["up"]);
    home.ok("warm", &["down"]);
    for step in 0..16 {
        kill_while_coming_up(&home, Duration::from_millis(step * 40));
    }
}

#[test]
fn killing_fcap_while_a_template_boots_leaves_no_machine() {
    let home = Home::with_own_cache();
    for delay in [20, 200, 1500] {
        kill_while_coming_up(&home, Duration::from_millis(delay));
    }
    // A boot ends with its maker, even if nobody comes after.
    let mut up = home.spawn("cut", &["up"]);
    wait_until("the template boots", || Ok(home.machines() == 1)).unwrap();
    up.kill().unwrap();
    up.wait().unwrap();
    wait_until("the boot has ended", || Ok(home.machines() == 0)).unwrap();
    home.ok("cut", &["down"]);
    let templates = home.cache.as_ref().unwrap().path().join("fcap/templates");
    let left = fs::read_dir(templates).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(left, 0, "half a template is left");
}

#[test]
fn mistakes_are_told_in_one_line() {
    let home = Home::new();
    let refused = |command: &mut Command, words: &[&str]| {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{output:?}");
        for word in words {
            assert!(text.contains(word), "{word:?} is missing: {text}");
        }
    };
    refused(&mut home.fcap("c", &["up", "--flavor", "huge"]), &["huge", "small"]);
    refused(&mut home.fcap("../c", &["up"]), &["../c", "letters"]);
    refused(&mut home.fcap("c", &["up", "-n", "1000"]), &["1000", "64"]);
    refused(home.fcap("c", &["up"]).env("FCAP_IMAGE_DIR", "/nowhere"), &["/nowhere", "cargo xtask"]);
    refused(home.fcap("c", &["up"]).env("PATH", "/nowhere"), &["qemu-system-x86", "install"]);
    assert_eq!(home.machines(), 0);
}

#[test]
fn secrets_are_for_the_user_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    home.ok("private", &["up"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
    assert_eq!(mode(&home.data.path().join("fcap/clouds/private/node1")), 0);
    assert_eq!(mode(&home.data.path().join("fcap/clouds/private")), 0);
}
