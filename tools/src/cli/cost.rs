//! `fcap cost`.

use fcap_api::cluster::Bill;
use fcap_cluster::plan::money;

use crate::human::{ago, now_ms, parse_since_ms};
use crate::output::{self, TextFormat, table};
use crate::target::Globals;

/// Shows what the cluster costs an hour, what it has cost, and what policies saved
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// From when on: 24h ago, a Unix time, or an RFC 3339 time; from the first node on unless given
    #[arg(long, value_name = "TIME", value_parser = parse_since_ms)]
    since: Option<u64>,
    /// Format of the answer
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: TextFormat,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let bill = globals.controller().await?.cost(self.since).await?;
        match self.output {
            TextFormat::Json => output::json(&bill)?,
            TextFormat::Yaml => output::yaml(&bill)?,
            TextFormat::Table => output::print(&text(&bill, now_ms()))?,
        }
        Ok(0)
    }
}

fn micros(price: u64) -> String {
    money(i64::try_from(price).unwrap_or(i64::MAX))
}

fn text(bill: &Bill, now: u64) -> String {
    let whole = vec![
        micros(bill.per_hour_micros),
        ago(bill.since_ms, now),
        micros(bill.cost_micros),
        money(bill.saved_micros),
        money(bill.saving_per_hour_micros),
    ];
    let whole = table(&["PER HOUR", "SINCE", "COST", "POLICIES SAVED", "SAVE PER HOUR"], [whole]);
    let by = |policy: bool| if policy { " by a policy" } else { "" };
    let rows = bill.nodes.iter().map(|node| {
        let stopped = node.stopped_ms.map(|time_ms| ago(time_ms, now) + by(node.stopped_by_policy));
        vec![
            node.node.clone(),
            node.flavor.clone().unwrap_or_else(|| "-".into()),
            micros(node.price_micros),
            ago(node.started_ms, now) + by(node.started_by_policy),
            stopped.unwrap_or_else(|| "-".into()),
            micros(node.cost_micros),
        ]
    });
    format!("{whole}\n{}", table(&["NODE", "FLAVOR", "PRICE/H", "STARTED", "STOPPED", "COST"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fcap_api::cluster::NodeCost;

    #[test]
    fn a_bill_has_its_sum_and_its_nodes() {
        let node = NodeCost {
            node: "node1".into(),
            flavor: Some("small".into()),
            price_micros: 10_000,
            started_ms: 0,
            started_by_policy: false,
            stopped_ms: Some(3_600_000),
            stopped_by_policy: true,
            cost_micros: 10_000,
        };
        let bill = Bill {
            until_ms: 7_200_000,
            per_hour_micros: 20_000,
            cost_micros: 50_000,
            saved_micros: 10_000,
            saving_per_hour_micros: 10_000,
            nodes: vec![node],
            ..Bill::default()
        };
        let text = text(&bill, 7_200_000);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "0.02       2 hours ago   0.05   0.01             0.01");
        assert_eq!(lines[2], "");
        assert_eq!(lines[4], "node1   small    0.01      2 hours ago   About an hour ago by a policy   0.01");
    }
}
