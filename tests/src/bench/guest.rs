//! Guests that serve: capsules of ours, and Debian's Linux with a known server.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, ensure};
use fcap_api::Capsule;

use crate::cli;
use crate::rig::{self, Node, linux_guest};

/// A guest on a node.
pub struct Guest<'a> {
    node: &'a Node,
    name: String,
    /// Its address in the network "default".
    pub address: Ipv4Addr,
}

impl<'a> Guest<'a> {
    /// Starts a capsule with the memory that the Linux guest has.
    pub fn capsule(node: &'a Node, name: &str, image: &str, args: &[&str]) -> anyhow::Result<Self> {
        let path = text(&cli::image(image))?;
        let options = ["run", "-d", "--name", name, "-m", linux_guest::MEMORY, "--network", "default", &path];
        Self::run(node, name, &[&options, args].concat())
    }

    /// Starts Linux with a server; `append` is for its kernel's command line.
    pub fn linux(node: &'a Node, name: &str, append: &str) -> anyhow::Result<Self> {
        let (kernel, initramfs) = (linux_guest::kernel(), linux_guest::initramfs());
        ensure!(kernel.exists(), "{} is missing: run `cargo xtask bench`", kernel.display());
        let (kernel, initramfs) = (text(&kernel)?, text(&initramfs)?);
        let append = format!("console=hvc0 quiet {append}");
        let options = ["run", "-d", "--name", name, "-m", linux_guest::MEMORY, "--network", "default"];
        Self::run(
            node,
            name,
            &[&options[..], &["--initrd", &initramfs, "--append", &append, &kernel]].concat(),
        )
    }

    fn run(node: &'a Node, name: &str, args: &[&str]) -> anyhow::Result<Self> {
        let output = node.fcap().call(args);
        ensure!(output.code == 0, "fcap {args:?}: {output:?}");
        let capsule = inspect(node, name)?;
        let address = capsule.networks.first().with_context(|| format!("{name} has no address"))?.ipv4;
        node.pin(capsule.domid.with_context(|| format!("{name} does not run"))?)?;
        Ok(Self { node, name: name.into(), address })
    }

    /// Waits until it takes connections at a port.
    pub fn wait_for(&self, port: u16) -> anyhow::Result<()> {
        let command =
            format!("nc -w 1 {} {port} </dev/null >/dev/null 2>&1 && echo yes || echo no", self.address);
        rig::wait_until(&format!("{} answers at port {port}", self.name), || {
            Ok(self.node.sh(&command)?.trim() == "yes")
        })
    }

    /// Processor time that it has used, by Xen's account.
    pub fn cpu_ns(&self) -> anyhow::Result<u64> {
        Ok(inspect(self.node, &self.name)?.cpu_time_ns)
    }

    /// What it has written.
    pub fn log(&self) -> anyhow::Result<String> {
        let output = self.node.fcap().call(&["logs", &self.name]);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits for its end.
    pub fn wait(&self) -> anyhow::Result<()> {
        let output = self.node.fcap().call(&["wait", &self.name]);
        ensure!(output.text() == "0", "{} ended with {output:?}: {}", self.name, self.log()?);
        Ok(())
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.node.fcap().call(&["rm", "-f", &self.name]);
    }
}

fn inspect(node: &Node, name: &str) -> anyhow::Result<Capsule> {
    node.api().get(&format!("/v1/capsules/{name}")).map_err(anyhow::Error::msg)
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("the tree's path is text")?.to_owned())
}
