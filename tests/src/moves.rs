//! Capsules that move: what tests and long runs of it share.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};
use fcap_api::Capsule;
use fcap_api::migrate::{Invitation, Migrate, MigrationIdentity, Moved, Precopy, Progress, Ticket};

use crate::cli;
use crate::rig::{Node, wait_until};

/// All that a node has of capsules: domains, interfaces, xenstore nodes, files, ports. A claim that
/// a capsule has come stays on the disk where its source could not say that it knows. What was held
/// ready for capsules is gone then.
pub fn traces(node: &Node) -> anyhow::Result<Vec<String>> {
    node.api().set_pool(0).map_err(anyhow::Error::msg)?;
    let found = node.sh("xl list | awk 'NR > 1 && $2 != 0 {print \"domain\", $2}'
         ls /sys/class/net | sed -n 's/^vif/interface vif/p'
         xenstore-list /local/domain | sed '/^0$/d; s/^/xenstore domain /'
         xenstore-list /local/domain/0/backend/vif 2>/dev/null | sed 's/^/xenstore backend /'
         ls /var/lib/fcap/capsules | sed 's/^/file /'
         ls /var/lib/fcap/migrations | sed -n '/\\.out$\\|\\.begun$/s/^/move /p'
         nft list map inet fcap published | sed -n '/elements/s/^[[:space:]]*/ports /p'")?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// Waits until a node has nothing of capsules any more.
pub fn nothing_left(node: &Node) -> anyhow::Result<()> {
    let mut left = Vec::new();
    wait_until("nothing of capsules is left", || {
        left = traces(node)?;
        Ok(left.is_empty())
    })
    .with_context(|| format!("{} has {left:?}", node.name()))
}

/// Waits until a node's daemon answers.
pub fn answers(node: &Node) -> anyhow::Result<()> {
    wait_until("fcapd answers", || Ok(node.api().node().is_ok()))
}

/// A capsule of a node, if it has it.
pub fn find(node: &Node, name: &str) -> anyhow::Result<Option<Capsule>> {
    let capsules: Vec<Capsule> = node.api().get("/v1/capsules?all=true").map_err(anyhow::Error::msg)?;
    Ok(capsules.into_iter().find(|capsule| capsule.name == name))
}

/// A promise of `to` to take in a capsule of `from`.
pub fn ticket(from: &Node, to: &Node) -> anyhow::Result<Ticket> {
    let identity: MigrationIdentity =
        from.api().get("/v1/migrations/identity").map_err(anyhow::Error::msg)?;
    let invitation = Invitation::from(identity);
    to.api().post("/v1/migrations", &invitation).map_err(anyhow::Error::msg)
}

/// Moves a capsule, and returns all that was told of it; nothing comes after a daemon's death.
pub fn migrate(from: &Node, name: &str, ticket: Ticket, how: Precopy) -> anyhow::Result<Vec<Progress>> {
    let path = format!("/v1/capsules/{name}/migrate");
    from.api().post_lines(&path, &Migrate { ticket, how }).map_err(anyhow::Error::msg)
}

/// Moves a capsule, which must succeed.
pub fn move_it(from: &Node, to: &Node, name: &str) -> anyhow::Result<Moved> {
    let told = migrate(from, name, ticket(from, to)?, Precopy::default())?;
    match told.last() {
        Some(Progress::Done(moved)) if !moved.unsettled => Ok(moved.clone()),
        _ => anyhow::bail!("{name} did not move from {} to {}: {told:?}", from.name(), to.name()),
    }
}

/// Starts an image on a node, with published ports reachable on this computer.
pub fn start(
    node: &Node,
    name: &str,
    options: &[&str],
    image: &str,
    args: &[&str],
) -> anyhow::Result<Capsule> {
    let path = cli::image(image);
    let path = path.to_str().context("the tree's path is text")?;
    node.fcap().ok(&[&["run", "-d", "--name", name], options, &[path], args].concat());
    let capsule = find(node, name)?.context("it was started")?;
    node.publish(&capsule.ports)?;
    for port in &capsule.ports {
        wait_until("the server answers", || Ok(TcpStream::connect(("127.0.0.1", port.host_port)).is_ok()))?;
    }
    Ok(capsule)
}

/// Removes all capsules of a node.
pub fn clear(node: &Node) -> anyhow::Result<()> {
    let fcap = node.fcap();
    for id in fcap.ok(&["ps", "-a", "-q"]).text().lines() {
        fcap.ok(&["rm", "-f", id]);
    }
    node.unpublish_others(&[])
}

/// What `guest-suspend` has written.
#[derive(Debug)]
pub struct Diary(Vec<String>);

impl Diary {
    /// Reads a capsule's log, but for a line that is being written.
    pub fn read(node: &Node, name: &str) -> Self {
        let log = String::from_utf8_lossy(&node.fcap().ok(&["logs", name]).stdout).into_owned();
        let whole = log.rfind('\n').map_or(0, |end| end + 1);
        Self(log[..whole].lines().map(|line| line.trim_end().to_owned()).collect())
    }

    /// What its lines say behind these words.
    pub fn saying(&self, words: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(move |line| line.split_once(' ')?.1.strip_prefix(words))
    }

    /// Checks that no line is lost or doubled and that its clocks go forward.
    pub fn check(&self) -> anyhow::Result<()> {
        let numbers = self.0.iter().filter_map(|line| line.split(' ').next()?.parse::<u64>().ok());
        let first = numbers.clone().next().context("it has said nothing")?;
        ensure!(numbers.eq(first..first + self.0.len() as u64), "lines are lost or doubled: {:#?}", self.0);
        let clocks = self.clocks();
        ensure!(
            clocks.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1),
            "its clocks go back: {clocks:?}"
        );
        Ok(())
    }

    /// What its clocks showed: time since its start, time since the Unix epoch.
    pub fn clocks(&self) -> Vec<(Duration, Duration)> {
        let ms = |text: &str| text.parse().ok().map(Duration::from_millis);
        let clocks = self.saying("clocks ").filter_map(|text| text.split_once(' '));
        clocks.filter_map(|(since, wall)| Some((ms(since)?, ms(wall)?))).collect()
    }
}

/// Waits until it has verified all its memory once more.
pub fn is_well(node: &Node, name: &str) -> anyhow::Result<()> {
    let turns = || Diary::read(node, name).saying("turn ").count();
    let before = turns();
    wait_until(&format!("{name} goes on"), || Ok(turns() > before))
}
