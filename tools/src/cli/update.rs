//! `fcap update`.

use super::capsules::for_each;
use super::spec::{parse_cap, parse_restart};
use crate::client::Reference;
use crate::human::parse_memory_kib;
use crate::target::Globals;
use fcap_api::{ErrorCode, RestartPolicy, UpdateCapsule};

/// Changes limits and policies of capsules while they run
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true).args(["memory", "cpu_cap", "weight", "restart"])))]
pub(super) struct Args {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "CAPSULE")]
    capsules: Vec<Reference>,
    /// Memory, such as 64m or 1g: one that runs gives back what it does not use, or takes more, up to
    /// the maximum that it was made with
    #[arg(short, long, value_name = "SIZE", value_parser = parse_memory_kib)]
    memory: Option<u64>,
    /// Most processor time, in percent of one processor; 0 is no limit
    #[arg(long, value_name = "PERCENT", value_parser = parse_cap)]
    cpu_cap: Option<u16>,
    /// Share of processor time under contention; 256 is usual
    #[arg(long, value_name = "WEIGHT")]
    weight: Option<u16>,
    /// What to do when it ends: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY", value_parser = parse_restart)]
    restart: Option<RestartPolicy>,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let controller = match self.memory {
            Some(_) => globals.local_controller(&fleet).await?,
            None => None,
        };
        let change = UpdateCapsule {
            name: None,
            memory_kib: self.memory,
            cpu_cap: self.cpu_cap,
            weight: self.weight,
            restart: self.restart,
        };
        for_each(&fleet, &self.capsules, async |node, id, reference| {
            match node.update(id, &change).await {
                // The controller moves it to a node that has the memory.
                Err(error) if error.code() == Some(ErrorCode::NoRoom) => match &controller {
                    Some(controller) => controller.update(id, &change).await?,
                    None => return Err(error.into()),
                },
                answer => answer?,
            };
            Ok(reference.to_string())
        })
        .await
    }
}
