//! Start to first HTTP response of a networked capsule: fcapd against `xl create` with a vif, same
//! kernel, same node, alternately. fcapd is as users have it: it builds each capsule from its image,
//! in a domain that it holds ready.

use std::time::Duration;

use anyhow::{Context, ensure};
use fcap_api::CreateCapsule;
use serde_json::json;
use xen_proto::boot::{self, Kind, Net};

use crate::cli;
use crate::rig::{self, Node};
use crate::stats::{median, summary};

const ROUNDS: usize = 10;
const MEMORY_KIB: u64 = 16 * 1024;
/// xl's guest has a bridge of its own, made as Xen's documentation has it.
const GATEWAY: [u8; 4] = [10, 77, 0, 1];
const ADDRESS: [u8; 4] = [10, 77, 0, 2];
const MAC: [u8; 6] = [0x00, 0x16, 0x3e, 0, 0, 2];

/// Runs the benchmark and returns its line of JSON.
pub fn run() -> anyhow::Result<serde_json::Value> {
    let node = Node::compare()?;
    let api = node.api();
    let httpd = cli::image("httpd");
    let image = api.upload(&httpd).map_err(anyhow::Error::msg)?;
    node.put("/tmp/fcap-probe", &std::fs::read(rig::probe())?)?;
    node.put("/tmp/image", &std::fs::read(&httpd)?)?;
    node.put("/tmp/boot", &boot_module())?;
    node.put(
        "/tmp/peer.cfg",
        format!(
            "name = \"peer\"\nkernel = \"/tmp/image\"\nramdisk = \"/tmp/boot\"\nmemory = {}\nvcpus = 1\n\
             vif = [\"mac=00:16:3e:00:00:02,bridge=xenbr0\"]\non_poweroff = \"destroy\"\n",
            MEMORY_KIB / 1024
        )
        .as_bytes(),
    )?;
    node.sh("chmod +x /tmp/fcap-probe; brctl addbr xenbr0; ip addr add 10.77.0.1/24 dev xenbr0; ip link set xenbr0 up")?;

    // xl is several times slower in the first minute of dom0's life.
    let up: f64 = node.sh("cut -d' ' -f1 /proc/uptime")?.trim().parse()?;
    let rest = (75.0 - up).max(0.0);
    eprintln!("dom0 is up for {up:.0} s, waiting {rest:.0} s before timing");
    std::thread::sleep(Duration::from_secs_f64(rest));

    let request = CreateCapsule {
        name: Some("web".into()),
        image: image.digest.clone(),
        image_name: Some("httpd".into()),
        memory_kib: Some(MEMORY_KIB),
        ..Default::default()
    };
    let body = serde_json::to_string(&request)?;
    let (mut xl, mut ours) = (vec![], vec![]);
    // One of each that does not count: pages of programs and libraries come in, the image is parsed.
    for round in 0..=ROUNDS {
        rig::quiet(&api)?;
        let ms = node.sh("/tmp/fcap-probe exec-http 10.77.0.2 xl create /tmp/peer.cfg")?;
        node.sh("xl destroy peer; while xl domid peer >/dev/null 2>&1; do sleep 0.1; done")?;
        let xl_ms = probed(&ms)?;
        rig::quiet(&api)?;
        if round > 0 {
            // It is made in the background, which must not fall into anybody's time.
            ensure!(interfaces(&node)? == 1, "fcapd holds no interface ready");
        }
        let ms = node.sh(&format!("/tmp/fcap-probe create-http {} '{body}'", fcap_api::DEFAULT_SOCKET))?;
        api.delete("/v1/capsules/web?force=true").map_err(anyhow::Error::msg)?;
        let our_ms = probed(&ms)?;
        rig::wait_until("the next interface is ready", || Ok(interfaces(&node)? == 1))?;
        eprintln!("round {round:>2}: xl {xl_ms:7.1} ms, fcapd {our_ms:6.1} ms");
        if round > 0 {
            xl.push(xl_ms);
            ours.push(our_ms);
        }
    }
    ensure!(!ours.is_empty(), "no rounds");
    println!("start to first HTTP response, measured in dom0:");
    println!("{}", summary("xl create with a vif", "ms", &xl));
    println!("{}", summary("fcapd", "ms", &ours));
    let (xl, ours) = (median(&xl), median(&ours));
    Ok(json!({ "bench": "run --net", "net_ratio": xl / ours, "xl_ms": xl, "net_ms": ours }))
}

/// Network interfaces of domains.
fn interfaces(node: &Node) -> anyhow::Result<u32> {
    Ok(node.sh("ls /sys/class/net | grep -c '^vif' || true")?.trim().parse()?)
}

/// What fcapd would tell the capsule of its network; xl passes it as a ramdisk.
fn boot_module() -> Vec<u8> {
    let net = Net {
        mac: MAC,
        mtu: 1500,
        ipv4: ADDRESS,
        gateway4: GATEWAY,
        dns4: GATEWAY,
        prefix4: 24,
        ..Net::default()
    };
    let mut module = Vec::new();
    boot::begin(&mut module);
    boot::record(&mut module, Kind::Seed, &rand::random::<[u8; 32]>());
    boot::record(&mut module, Kind::Arg, b"httpd");
    boot::record(&mut module, Kind::Net, &net.emit());
    boot::record(&mut module, Kind::End, &[]);
    module
}

/// The probe's figure: its last line, behind what the commands themselves had to say.
fn probed(output: &str) -> anyhow::Result<f64> {
    output
        .lines()
        .last()
        .and_then(|line| line.parse().ok())
        .with_context(|| format!("no figure in {output:?}"))
}
