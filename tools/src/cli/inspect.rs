//! `fcap inspect`.

use crate::client::Reference;
use crate::output::{self, DataFormat};
use crate::target::Globals;
use crate::terminal::one_line;

/// Tells everything about capsules, also how and where they ended
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "CAPSULE")]
    capsules: Vec<Reference>,
    /// Format of the list
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: DataFormat,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let mut found = Vec::new();
        let mut code = 0;
        for reference in &self.capsules {
            match fleet.find(reference).await {
                Ok((_, capsule)) => found.push(capsule),
                Err(error) => {
                    eprintln!("fcap: {}", one_line(&format!("{:#}", anyhow::Error::new(error))));
                    code = 1;
                }
            }
        }
        // The capsules that there are, as docker does.
        output::data(self.output, &found)?;
        Ok(code)
    }
}
