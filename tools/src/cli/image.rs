//! `fcap image`: images that nodes hold.

use crate::human::{size, size_kib};
use crate::output::{self, Format, short_id, table};
use crate::target::Globals;
use crate::terminal::one_line;
use anyhow::{bail, ensure};
use fcap_api::{Image, ImageKind};
use std::collections::BTreeMap;

/// Lists and removes images that nodes hold
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    #[command(alias = "list")]
    Ls(ListArgs),
    #[command(alias = "delete")]
    Rm(RemoveArgs),
}

/// Lists images that nodes hold
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Print digests only
    #[arg(short, long)]
    quiet: bool,
    /// Format of the list
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// Print digests in full
    #[arg(long)]
    no_trunc: bool,
}

/// Removes images that no capsule uses
#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// Digests, or the start of digests
    #[arg(required = true, value_name = "DIGEST")]
    digests: Vec<String>,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        match self.verb {
            Verb::Ls(args) => args.call(globals).await,
            Verb::Rm(args) => args.call(globals).await,
        }
    }
}

impl ListArgs {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let (lists, complete) = fleet.ask(|node| node.images()).await.noted()?;
        let unique: BTreeMap<String, Image> =
            lists.into_iter().flatten().map(|image| (image.digest.clone(), image)).collect();
        let images: Vec<Image> = unique.into_values().collect();
        let digests =
            || images.iter().map(|image| short_id(&image.digest, self.no_trunc) + "\n").collect::<String>();
        match self.output {
            _ if self.quiet => output::print(&digests())?,
            Format::Name => output::print(&digests())?,
            Format::Json => output::json(&images)?,
            Format::Yaml => output::yaml(&images)?,
            Format::Table | Format::Wide => {
                let rows = images.iter().map(|image| {
                    vec![
                        short_id(&image.digest, self.no_trunc),
                        kind(image.kind).into(),
                        size(image.size),
                        image.min_memory_kib.map_or_else(|| "-".into(), size_kib),
                    ]
                });
                output::print(&table(&["DIGEST", "KIND", "SIZE", "NEEDS"], rows))?;
            }
        }
        Ok(u8::from(!complete))
    }
}

fn kind(kind: ImageKind) -> &'static str {
    match kind {
        ImageKind::Capsule => "capsule",
        ImageKind::Kernel => "kernel",
        ImageKind::Data => "data",
    }
}

impl RemoveArgs {
    async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let mut code = 0;
        for text in &self.digests {
            match remove(&fleet, text).await {
                Ok(digest) => output::print(&(digest + "\n"))?,
                Err(error) => {
                    eprintln!("fcap: {}", one_line(&format!("{error:#}")));
                    code = 1;
                }
            }
        }
        Ok(code)
    }
}

/// Removes an image from every node that holds it.
async fn remove(fleet: &crate::fleet::Fleet, text: &str) -> anyhow::Result<String> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
    ensure!(
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{text:?} is no digest; `fcap image ls` shows them"
    );
    let start = format!("sha256:{digits}");
    let mut found: Option<String> = None;
    let mut holders = Vec::new();
    for node in fleet.nodes() {
        for image in node.images().await?.into_iter().filter(|image| image.digest.starts_with(&start)) {
            if found.as_ref().is_some_and(|found| *found != image.digest) {
                bail!("{text} fits several images; `fcap image ls --no-trunc` shows them");
            }
            found = Some(image.digest);
            holders.push(node);
        }
    }
    let Some(digest) = found else { bail!("no such image: {text}; `fcap image ls` shows all") };
    for node in holders {
        node.remove_image(&digest).await?;
    }
    Ok(digest)
}
