//! Tables, as the server prints them: columns of text, aligned.

use serde_json::Value;

use crate::manifest::diagnostic::clean;

/// What is shown of tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Show {
    /// Columns of lesser importance too.
    pub wide: bool,
    /// The namespace first.
    pub namespace: bool,
    /// Labels last.
    pub labels: bool,
    /// Names as `task.muster.dev/hello`; how they begin is given with the rows.
    pub kind: bool,
}

/// A server's table, read: headings and rows.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
}

#[derive(Clone, Debug)]
struct Column {
    name: String,
    is_name: bool,
    priority: i64,
}

impl Table {
    /// Reads the headings of an answer.
    pub fn of(answer: &Value) -> Table {
        let columns = answer["columnDefinitions"].as_array().into_iter().flatten();
        let columns = columns.map(|column| Column {
            name: column["name"].as_str().unwrap_or_default().to_uppercase(),
            is_name: column["format"] == "name",
            priority: column["priority"].as_i64().unwrap_or(0),
        });
        Table {
            columns: columns.collect(),
        }
    }

    /// Whether there are headings; the later tables of a watch have none.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    fn shown(&self, show: Show) -> impl Iterator<Item = (usize, &Column)> {
        self.columns
            .iter()
            .enumerate()
            .filter(move |(_, column)| column.priority == 0 || show.wide)
    }

    /// The headings that are shown.
    pub fn headings(&self, show: Show) -> Vec<String> {
        let namespace = show.namespace.then(|| "NAMESPACE".to_owned());
        let labels = show.labels.then(|| "LABELS".to_owned());
        namespace
            .into_iter()
            .chain(self.shown(show).map(|(_, column)| column.name.clone()))
            .chain(labels)
            .collect()
    }

    /// The rows of an answer, as they are shown.
    pub fn rows(&self, answer: &Value, show: Show, kind: &str) -> Vec<Vec<String>> {
        let rows = answer["rows"].as_array().into_iter().flatten();
        rows.map(|row| self.row(row, show, kind)).collect()
    }

    fn row(&self, row: &Value, show: Show, kind: &str) -> Vec<String> {
        let metadata = &row["object"]["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut cells = Vec::new();
        if show.namespace {
            cells.push(text(&metadata["namespace"]));
        }
        for (index, column) in self.shown(show) {
            let cell = cell(&row["cells"][index]);
            cells.push(if column.is_name && show.kind {
                format!("{kind}/{cell}")
            } else {
                cell
            });
        }
        if show.labels {
            let labels = crate::output::pairs(&metadata["labels"]);
            let labels: Vec<String> = labels
                .into_iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            cells.push(if labels.is_empty() {
                "<none>".to_owned()
            } else {
                labels.join(",")
            });
        }
        cells
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => {
            let first = text.lines().next().unwrap_or_default();
            if first.len() < text.trim_end().len() {
                format!("{}…", clean(first))
            } else {
                clean(first)
            }
        }
        other => other.to_string(),
    }
}

/// The widths that columns need, which only grow.
#[derive(Clone, Debug, Default)]
pub struct Widths(Vec<usize>);

impl Widths {
    /// Makes room for a row.
    pub fn fit(&mut self, row: &[String]) {
        self.0.resize(self.0.len().max(row.len()), 0);
        for (width, cell) in self.0.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }

    /// A row, aligned: three spaces between columns, none at the end.
    pub fn line(&self, row: &[String]) -> String {
        let cells = row.iter().enumerate().map(|(index, cell)| {
            let width = self.0.get(index).copied().unwrap_or(0);
            format!("{cell}{}", " ".repeat(width.saturating_sub(cell.chars().count()) + 3))
        });
        format!("{}\n", cells.collect::<String>().trim_end())
    }
}

/// Headings and rows, aligned.
pub fn align(headings: &[String], rows: Vec<Vec<String>>, with_headings: bool) -> String {
    let mut widths = Widths::default();
    if with_headings {
        widths.fit(headings);
    }
    rows.iter().for_each(|row| widths.fit(row));
    let head = if with_headings {
        widths.line(headings)
    } else {
        String::new()
    };
    rows.iter().fold(head, |text, row| text + &widths.line(row))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        json!({
            "kind": "Table",
            "columnDefinitions": [
                {"name": "Name", "format": "name", "priority": 0},
                {"name": "Phase", "priority": 0},
                {"name": "Exit", "type": "integer", "priority": 0},
                {"name": "Message", "priority": 1},
            ],
            "rows": [
                {"cells": ["hello", "Finished", 0, "line one\nline two"], "object": {"metadata": {"namespace": "default", "labels": {"a": "b", "c": "d"}}}},
                {"cells": ["a-long-name", "Pending", null, ""], "object": {"metadata": {"namespace": "ml"}}},
            ],
        })
    }

    fn shown(show: Show) -> String {
        let table = Table::of(&answer());
        align(
            &table.headings(show),
            table.rows(&answer(), show, "task.muster.dev"),
            true,
        )
    }

    #[test]
    fn tables_are_aligned() {
        insta::assert_snapshot!(shown(Show::default()), @"
        NAME          PHASE      EXIT
        hello         Finished   0
        a-long-name   Pending    -
        ");
    }

    #[test]
    fn more_columns_are_shown_when_asked_for() {
        let show = Show {
            wide: true,
            namespace: true,
            labels: true,
            kind: true,
        };
        insta::assert_snapshot!(shown(show), @"
        NAMESPACE   NAME                          PHASE      EXIT   MESSAGE     LABELS
        default     task.muster.dev/hello         Finished   0      line one…   a=b,c=d
        ml          task.muster.dev/a-long-name   Pending    -      -           <none>
        ");
    }
}
