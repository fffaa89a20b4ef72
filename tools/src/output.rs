//! Results on standard output: tables, JSON, YAML, names.

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::Write as _;

/// How a list is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// The API's own types.
    Json,
    /// The same as YAML.
    Yaml,
    /// Names only, one a line.
    Name,
}

/// How data is written that has no columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DataFormat {
    /// The API's own types.
    #[default]
    Json,
    /// The same as YAML.
    Yaml,
}

/// Text or data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TextFormat {
    /// For people.
    #[default]
    Table,
    /// The API's own types.
    Json,
    /// The same as YAML.
    Yaml,
}

/// A table as docker draws it: no lines, three spaces between columns.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Writes to standard output.
///
/// # Errors
/// When that fails; a closed pipe is [`std::io::ErrorKind::BrokenPipe`] in the chain.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("standard output")
}

/// Writes a value as indented JSON.
///
/// # Errors
/// As [`print()`].
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes a value as YAML.
///
/// # Errors
/// As [`print()`].
pub fn yaml(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_saphyr::to_string(value)?)
}

/// Writes a value in a format for data.
///
/// # Errors
/// As [`print()`].
pub fn data(format: DataFormat, value: &impl Serialize) -> anyhow::Result<()> {
    match format {
        DataFormat::Json => json(value),
        DataFormat::Yaml => yaml(value),
    }
}

/// Writes a list in any format; the table is wide or not.
///
/// # Errors
/// As [`print()`].
pub fn list<T: Serialize>(
    format: Format,
    items: &[T],
    name: impl Fn(&T) -> &str,
    table: impl FnOnce(bool) -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Json => json(&items),
        Format::Yaml => yaml(&items),
        Format::Name => print(&items.iter().map(|item| format!("{}\n", name(item))).collect::<String>()),
        Format::Table | Format::Wide => print(&table(format == Format::Wide)),
    }
}

/// The first twelve digits of an id or digest, or all of it.
pub fn short_id(id: &str, whole: bool) -> String {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    if whole { id.to_owned() } else { digits.chars().take(12).collect() }
}

/// At most `limit` characters, with a mark where something is missing.
pub fn truncated(text: &str, limit: usize, whole: bool) -> String {
    if whole || text.chars().count() <= limit {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(limit - 1).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_lines_and_no_trailing_spaces() {
        let rows = [vec!["1".to_owned(), "long name".to_owned()], vec!["22".to_owned(), String::new()]];
        assert_eq!(table(&["ID", "NAME"], rows), "ID   NAME\n1    long name\n22\n");
        assert_eq!(table(&["ID", "NAME"], []), "ID   NAME\n");
    }

    #[test]
    fn long_text_is_cut_at_characters() {
        assert_eq!(truncated("äöü", 3, false), "äöü");
        assert_eq!(truncated("äöüß", 3, false), "äö…");
        assert_eq!(truncated("äöüß", 3, true), "äöüß");
        assert_eq!(short_id("sha256:0123456789abcdef", false), "0123456789ab");
    }
}
