//! `fcap policy`: scripts that change the cluster by themselves.

mod show;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use fcap_api::cluster::{PolicyResult, PolicySpec, Rules, Setting, TestPolicy, View};
use fcap_cluster::policies;
use fcap_cluster::policy::{self, Budget, MAX_SOURCE, SHIPPED, Script, Shipped};
use fcap_cluster::view::Index;

use crate::client::{Client, Reference};
use crate::human::parse_span;
use crate::output::{self, DataFormat, Format, TextFormat};
use crate::target::Globals;

/// Applies, tries and explains policies: scripts that move capsules, and start and stop nodes
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Apply(ApplyArgs),
    /// Lists the policies that are applied
    #[command(alias = "list")]
    Ls {
        /// Format of the list
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Format,
    },
    /// Shows all that is known of policies, with their scripts
    #[command(alias = "show")]
    Inspect {
        /// Names of policies
        #[arg(required = true, value_name = "POLICY")]
        policies: Vec<Reference>,
        /// Format of the answer
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: DataFormat,
    },
    /// Removes policies; what they have begun comes to its end
    Rm {
        /// Names of policies
        #[arg(required = true, value_name = "POLICY")]
        policies: Vec<Reference>,
    },
    /// Has policies run again that are disabled or suspended
    Enable {
        /// Names of policies
        #[arg(required = true, value_name = "POLICY")]
        policies: Vec<Reference>,
    },
    /// Has policies not run for now
    Disable {
        /// Names of policies
        #[arg(required = true, value_name = "POLICY")]
        policies: Vec<Reference>,
    },
    Test(TestArgs),
    /// Says what a policy that is applied would do now and why, and why not the rest
    Explain {
        /// Name of the policy
        #[arg(value_name = "POLICY")]
        policy: Reference,
        /// Format of the answer
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: TextFormat,
    },
    History(HistoryArgs),
    /// Prints the cluster as policies see it, as JSON for `fcap policy test --view`
    View,
}

/// What a script is given, and what its plans keep to
#[derive(Debug, clap::Args)]
struct Given {
    /// A setting of the script, KEY=VALUE; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, Setting)>,
    /// What plans keep to, such as cooldown=5m, node_age=5m, parallel=4, moves=100, nodes=10 or
    /// least_nodes=2; can be repeated
    #[arg(long = "rule", value_name = "KEY=VALUE")]
    rules: Vec<String>,
}

/// Has a policy run from now on; one that comes with fcap, or a script of your own
///
/// What was applied under the name before is replaced, with its settings.
#[derive(Debug, clap::Args)]
struct ApplyArgs {
    /// Name of a policy that comes with fcap, or file with a script
    #[arg(value_name = "POLICY|FILE")]
    what: String,
    /// What it is called; its own name, or that of the file, unless given
    #[arg(long, value_name = "NAME")]
    name: Option<Reference>,
    #[command(flatten)]
    given: Given,
    /// How often it is run
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = parse_span)]
    every: Duration,
    /// Only record what it would do
    #[arg(long)]
    dry_run: bool,
    /// Do not run it yet
    #[arg(long)]
    disabled: bool,
}

/// Says what a policy would do now and why, and why not the rest; nothing is done
#[derive(Debug, clap::Args)]
struct TestArgs {
    /// Name of a policy that comes with fcap, or file with a script
    #[arg(value_name = "POLICY|FILE")]
    what: String,
    /// File with what it looks at, as `fcap policy view` prints it; the cluster as it is unless given
    #[arg(long, value_name = "FILE")]
    view: Option<String>,
    #[command(flatten)]
    given: Given,
    /// Format of the answer
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: TextFormat,
}

/// Shows what policies did, and why
#[derive(Debug, clap::Args)]
struct HistoryArgs {
    /// Name of a policy; of all unless given
    #[arg(value_name = "POLICY")]
    policy: Option<Reference>,
    /// Only the latest
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
    lines: usize,
    /// Show each proposal with its reason, and why it was rejected if it was
    #[arg(long)]
    full: bool,
    /// Format of the list
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: TextFormat,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        match self.verb {
            Verb::Apply(args) => args.call(globals).await,
            Verb::Ls { output } => show::list(output, &globals.controller().await?.policies().await?),
            Verb::Inspect { policies, output } => {
                let controller = globals.controller().await?;
                let mut found = Vec::new();
                for policy in &policies {
                    found.push(controller.policy(policy.as_str()).await?);
                }
                output::data(output, &found)?;
                Ok(0)
            }
            Verb::Rm { policies } => {
                let controller = globals.controller().await?;
                for policy in &policies {
                    controller.remove_policy(policy.as_str()).await?;
                }
                Ok(0)
            }
            Verb::Enable { policies } => enable(&globals.controller().await?, &policies, true).await,
            Verb::Disable { policies } => enable(&globals.controller().await?, &policies, false).await,
            Verb::Test(args) => args.call(globals).await,
            Verb::Explain { policy, output } => {
                let controller = globals.controller().await?;
                let applied = controller.policy(policy.as_str()).await?;
                let result = controller.test_policy(policy.as_str(), &TestPolicy::default()).await?;
                show::result(output, &result, Some(&applied))
            }
            Verb::History(args) => {
                let controller = globals.controller().await?;
                let policy = args.policy.as_ref().map(Reference::as_str);
                let runs = controller.policy_history(policy, args.lines).await?;
                show::history(args.output, &runs, args.full)
            }
            Verb::View => {
                output::json(&globals.controller().await?.view().await?)?;
                Ok(0)
            }
        }
    }
}

impl ApplyArgs {
    async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let (name, source) = script(&self.what)?;
        let name = match &self.name {
            Some(name) => name.as_str().to_owned(),
            None => name,
        };
        let spec = PolicySpec {
            source: Some(source),
            settings: self.given.settings(),
            interval_ms: u64::try_from(self.every.as_millis()).unwrap_or(u64::MAX),
            enabled: !self.disabled,
            dry_run: self.dry_run,
            rules: self.given.rules()?,
        };
        // What goes into a path has to be a name before.
        let name: Reference = name.parse().map_err(|_| not_a_name(&name))?;
        let policy = globals.controller().await?.apply_policy(name.as_str(), &spec).await?;
        output::print(&format!("{}\n", policy.name))?;
        Ok(0)
    }
}

impl TestArgs {
    async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let (name, source) = script(&self.what)?;
        let name: Reference = name.parse().map_err(|_| not_a_name(&name))?;
        let (settings, rules) = (self.given.settings(), self.given.rules()?);
        let result = match &self.view {
            // Needs no cluster.
            Some(file) => {
                let script = Script { name: name.as_str().to_owned(), source, settings };
                on_view(&script, &rules, file)?
            }
            None => {
                let (source, settings, rules) = (Some(source), Some(settings), Some(rules));
                let test = TestPolicy { source, settings, rules, view: None };
                globals.controller().await?.test_policy(name.as_str(), &test).await?
            }
        };
        show::result(self.output, &result, None)
    }
}

fn on_view(script: &Script, rules: &Rules, file: &str) -> anyhow::Result<PolicyResult> {
    let text = std::fs::read(file).with_context(|| format!("view {file}"))?;
    let view: View = serde_json::from_slice(&text)
        .with_context(|| format!("{file} is no view; `fcap policy view` prints one"))?;
    let index = Index::new(&view).with_context(|| format!("view {file}"))?;
    Ok(policy::test(script, &index, &policies::limits(rules)?, &Budget::default())?)
}

fn not_a_name(name: &str) -> anyhow::Error {
    anyhow::anyhow!("{name:?} is no name for a policy: give one of letters, digits, '_', '.' and '-'")
}

/// Name and text of a policy that comes with fcap, or of a file.
fn script(what: &str) -> anyhow::Result<(String, String)> {
    if let Some(shipped) = Shipped::named(what) {
        return Ok((shipped.name.to_owned(), shipped.source.to_owned()));
    }
    let path = Path::new(what);
    if !path.exists() {
        let all: Vec<&str> = SHIPPED.iter().map(|shipped| shipped.name).collect();
        bail!("{what} is neither a file nor a policy that comes with fcap: those are {}", all.join(", "));
    }
    let long = || path.metadata().is_ok_and(|metadata| metadata.len() > MAX_SOURCE as u64);
    ensure!(!long(), "{what} has more than {MAX_SOURCE} bytes: it is no script");
    let source = std::fs::read_to_string(path).with_context(|| format!("script {what}"))?;
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    Ok((name.to_owned(), source))
}

async fn enable(controller: &Client, policies: &[Reference], enabled: bool) -> anyhow::Result<u8> {
    for policy in policies {
        let spec = controller.policy(policy.as_str()).await?.spec;
        controller.apply_policy(policy.as_str(), &PolicySpec { enabled, ..spec }).await?;
    }
    Ok(0)
}

/// A setting: yes or no, a number, or else text.
fn setting(text: &str) -> Result<(String, Setting), String> {
    let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        return Err("not a setting: write KEY=VALUE".into());
    };
    let number = value.parse().ok().filter(|number: &f64| number.is_finite());
    let setting = match (value, number) {
        ("true", _) => Setting::Bool(true),
        ("false", _) => Setting::Bool(false),
        (_, Some(number)) => Setting::Number(number),
        _ => Setting::Text(value.to_owned()),
    };
    Ok((key.to_owned(), setting))
}

impl Given {
    fn settings(&self) -> BTreeMap<String, Setting> {
        self.settings.iter().cloned().collect()
    }

    fn rules(&self) -> anyhow::Result<Rules> {
        let mut rules = Rules::default();
        for text in &self.rules {
            let Some((key, value)) = text.split_once('=') else {
                bail!("{text:?} is no rule: write KEY=VALUE, as in cooldown=5m");
            };
            let number = || {
                value.parse::<u64>().with_context(|| format!("rule {key} is {value:?}, and no whole number"))
            };
            let seconds = || match parse_span(value) {
                Ok(span) => Ok(span.as_secs()),
                Err(error) => bail!("rule {key} is {value:?}: {error}"),
            };
            let (field, value) = match key {
                "cooldown" => (&mut rules.cooldown_s, seconds()?),
                "node_age" => (&mut rules.node_age_s, seconds()?),
                "parallel" => (&mut rules.parallel, number()?),
                "parallel_per_node" => (&mut rules.parallel_per_node, number()?),
                "moves" => (&mut rules.moves, number()?),
                "nodes" => (&mut rules.nodes, number()?),
                "least_nodes" => (&mut rules.least_nodes, number()?),
                "cpu_percent" => (&mut rules.cpu_percent, number()?),
                "gain_percent" => (&mut rules.gain_percent, number()?),
                "saving_percent" => (&mut rules.saving_percent, number()?),
                _ => bail!(
                    "there is no rule {key}; there are cooldown, node_age, parallel, parallel_per_node, moves, \
                     nodes, least_nodes, cpu_percent, gain_percent and saving_percent"
                ),
            };
            *field = Some(value);
        }
        // Numbers that make no sense are told before anybody is asked.
        policies::limits(&rules)?;
        Ok(rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_what_they_look_like() {
        let read = |text: &str| setting(text).ok();
        assert_eq!(read("a=1.5"), Some(("a".into(), Setting::Number(1.5))));
        assert_eq!(read("a=true"), Some(("a".into(), Setting::Bool(true))));
        assert_eq!(read("a=b=c"), Some(("a".into(), Setting::Text("b=c".into()))));
        assert_eq!(read("a=NaN"), Some(("a".into(), Setting::Text("NaN".into()))));
        assert_eq!((read("a"), read("=1")), (None, None));
    }

    #[test]
    fn rules_have_times_and_numbers() {
        let read = |rules: &[&str]| {
            let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
            Given { settings: Vec::new(), rules }.rules().map_err(|error| error.to_string())
        };
        let expected = Rules { cooldown_s: Some(90), least_nodes: Some(2), ..Rules::default() };
        assert_eq!(read(&["cooldown=1m30s", "least_nodes=2"]), Ok(expected));
        for (bad, part) in [
            ("cooldown", "is no rule: write KEY=VALUE"),
            ("cooldown=soon", "rule cooldown is \"soon\": not a time"),
            ("moves=-1", "and no whole number"),
            ("parallel=1000", "it can be 1 to 64"),
            ("speed=1", "there is no rule speed; there are cooldown, "),
        ] {
            let error = read(&[bad]).unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[test]
    fn scripts_are_shipped_or_files() {
        assert_eq!(script("scale").unwrap().0, "scale");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.luau");
        std::fs::write(&file, "return {}").unwrap();
        let expected = ("mine".to_owned(), "return {}".to_owned());
        assert_eq!(script(file.to_str().unwrap()).unwrap(), expected);
        std::fs::write(&file, " ".repeat(MAX_SOURCE + 1)).unwrap();
        assert!(script(file.to_str().unwrap()).unwrap_err().to_string().contains("it is no script"));
        let error = script("skale").unwrap_err().to_string();
        assert!(error.starts_with("skale is neither a file nor a policy that comes with fcap: "), "{error}");
    }
}
