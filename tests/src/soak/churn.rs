//! Create and destroy, a thousand times: what the node has afterwards is what it had before.

use std::collections::BTreeMap;

use anyhow::ensure;
use fcap_api::CreateCapsule;

use crate::cli;
use crate::rig::Node;

/// Runs `cycles` cycles of create, run and remove.
pub fn run(cycles: u32) -> anyhow::Result<()> {
    let node = Node::compare()?;
    let api = node.api();
    let image = api.upload(&cli::image("hello")).map_err(anyhow::Error::msg)?;
    let cycle = |i: u32| -> anyhow::Result<()> {
        let request = CreateCapsule {
            image: image.digest.clone(),
            image_name: Some("hello".into()),
            // Different sizes, so that no page comes back to the same place.
            memory_kib: Some(2048 + 64 * u64::from(i % 64)),
            ..Default::default()
        };
        let capsule = api.create(&request).map_err(anyhow::Error::msg)?;
        if i.is_multiple_of(2) {
            let end: fcap_api::End =
                api.get(&format!("/v1/capsules/{}/wait", capsule.id)).map_err(anyhow::Error::msg)?;
            ensure!(end.exit_code == 0, "cycle {i}: {end:?}");
        }
        // The others are removed while they run, or hardly have begun.
        api.delete(&format!("/v1/capsules/{}?force=true", capsule.id)).map_err(anyhow::Error::msg)
    };
    // Caches fill, the allocator takes its arenas: not what is looked for.
    for i in 0..64 {
        cycle(i)?;
    }
    let before = inventory(&node)?;
    println!("before: {before:?}");
    for i in 0..cycles {
        cycle(i)?;
        if (i + 1) % 100 == 0 {
            println!("{} cycles", i + 1);
        }
    }
    let after = inventory(&node)?;
    println!("after:  {after:?}");
    ensure!(before == after, "something is left behind:\n{before:?}\n{after:?}");
    println!("{cycles} cycles: free memory, xenstore, event channels and descriptors end where they began");
    Ok(())
}

/// What a cycle could leave behind. The node is asked until it is quiet: domains are taken
/// apart by Xen in the background. What is held ready for capsules goes first.
pub fn inventory(node: &Node) -> anyhow::Result<BTreeMap<&'static str, String>> {
    node.api().set_pool(0).map_err(anyhow::Error::msg)?;
    crate::rig::wait_until("no domain is left", || Ok(node.sh("xl list")?.lines().count() == 2))?;
    let ask = [
        ("free memory MiB", "xl info | awk '/^free_memory/ {print $3}'"),
        // netback makes the folders of its error messages when it has the first one to write.
        (
            "xenstore nodes",
            "xenstore-ls -f | grep . | grep -vcE '^/local/domain/0/error(/backend(/vif)?)? = \"\"$'",
        ),
        ("event channels", "/usr/lib/xen-4.17/bin/lsevtchn 0 | grep -c ."),
        ("descriptors of fcapd", "ls /proc/$(pidof fcapd)/fd | wc -l"),
        // Not how many: the kernel makes one of two that happen to be neighbours. Those of
        // /dev/xen/hypercall are libxencall's buffers, one for each call at the same time.
        (
            "pages mapped by fcapd",
            "awk '/\\/dev\\/xen\\/(privcmd|gntdev)/ {print $1}' /proc/$(pidof fcapd)/maps | tr - ' ' |
             while read -r begin end; do echo $(((0x$end - 0x$begin) / 4096)); done |
             awk '{sum += $1} END {print sum + 0}'",
        ),
        ("files of fcapd", "find /var/lib/fcap -path '*capsules*' | wc -l"),
    ];
    ask.into_iter().map(|(what, command)| Ok((what, node.sh(command)?.trim().to_owned()))).collect()
}
