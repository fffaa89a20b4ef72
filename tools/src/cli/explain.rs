//! `fcap explain`.

use crate::client::Reference;
use crate::output::{self, TextFormat};
use crate::target::Globals;
use crate::terminal::one_line;

/// Says why a capsule is where it is, and which other nodes could take it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id, unique prefix of an id, or name
    #[arg(value_name = "CAPSULE")]
    capsule: Reference,
    /// Format of the answer
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: TextFormat,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let controller = globals.controller().await?;
        let capsule = controller.capsule(&self.capsule).await?;
        let placement = controller.placement(&self.capsule).await?;
        match self.output {
            TextFormat::Json => output::json(&placement)?,
            TextFormat::Yaml => output::yaml(&placement)?,
            TextFormat::Table => {
                let mut text = format!("{} is on node {}\n", capsule.name, capsule.node);
                for node in &placement.considered {
                    let score = node.score.map_or("cannot take it".into(), |score| format!("score {score}"));
                    text += &format!("  {}: {score}; {}\n", node.node, one_line(&node.reasons.join(", ")));
                }
                match (&placement.node, &placement.flavor) {
                    (Some(best), _) if *best == capsule.node => text += "no other node would be better\n",
                    (Some(best), _) => text += &format!("it would go to node {best} if it were made now\n"),
                    (None, Some(flavor)) => text += &format!("a fresh {flavor} node could take it\n"),
                    (None, None) => text += "no node and no flavor could take it\n",
                }
                output::print(&text)?;
            }
        }
        Ok(0)
    }
}
