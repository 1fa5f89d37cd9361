//! Printing objects: YAML that every reader understands alike, JSON, names, parts of objects.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::discovery::Resource;
use crate::failure::{Failure, Outcome};
use crate::jsonpath::Template;

/// How objects are printed.
#[derive(Clone, Debug)]
pub enum Format {
    /// A table, as the server prints it.
    Table,
    /// The same with all columns.
    Wide,
    /// YAML.
    Yaml,
    /// JSON.
    Json,
    /// `task.muster.dev/hello`.
    Name,
    /// Parts of objects.
    Template(Template),
    /// Columns of one's own: headings, and what stands below them.
    Columns(Vec<(String, Template)>),
}

impl Format {
    /// Reads the value of `-o`.
    pub fn parse(text: Option<&str>) -> Outcome<Format> {
        let Some(text) = text else {
            return Ok(Format::Table);
        };
        let bad = |why: String| Failure::new(format!("-o {text}: {why}"));
        match text
            .split_once('=')
            .map_or((text, None), |(name, rest)| (name, Some(rest)))
        {
            ("wide", None) => Ok(Format::Wide),
            ("yaml", None) => Ok(Format::Yaml),
            ("json", None) => Ok(Format::Json),
            ("name", None) => Ok(Format::Name),
            ("jsonpath", Some(template)) => Template::parse(template).map(Format::Template).map_err(bad),
            ("custom-columns", Some(columns)) => columns
                .split(',')
                .map(column)
                .collect::<Result<_, _>>()
                .map(Format::Columns)
                .map_err(bad),
            ("jsonpath" | "custom-columns", None) => Err(bad("write what to print after a `=`".to_owned())),
            _ => Err(bad(
                "there are json, yaml, name, wide, jsonpath=…, custom-columns=…".to_owned()
            )),
        }
    }

    /// Whether it is printed from whole objects and not from a table.
    pub fn needs_objects(&self) -> bool {
        !matches!(self, Format::Table | Format::Wide)
    }
}

fn column(text: &str) -> Result<(String, Template), String> {
    let (heading, path) = text
        .split_once(':')
        .ok_or_else(|| format!("`{text}` is no column; write HEADING:.path"))?;
    Ok((heading.to_owned(), Template::parse(path)?))
}

/// The YAML of a value, with every text in quotes that some reader would take for something else.
pub fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).expect("JSON values have a form in YAML")
}

/// The JSON of a value, indented.
pub fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("JSON values have a form in JSON");
    text.push('\n');
    text
}

/// The value with apiVersion, kind, metadata, spec and status in this order at the beginning, and without what only the server cares for.
pub fn tidy(object: &Value, managed_fields: bool) -> Value {
    let mut object = object.clone();
    if !managed_fields && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// Several objects as one.
pub fn list(objects: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "items": objects, "kind": "List", "metadata": {"resourceVersion": ""}})
}

/// Prints objects, `single` as itself and others as a list.
pub fn print(out: &mut dyn Write, format: &Format, objects: Vec<(Resource, Value)>, single: bool) -> Outcome<()> {
    let whole = |objects: Vec<(Resource, Value)>| -> Value {
        let mut values: Vec<Value> = objects.into_iter().map(|(_, value)| value).collect();
        if single && values.len() == 1 {
            values.remove(0)
        } else {
            list(values)
        }
    };
    let text = match format {
        Format::Yaml => yaml(&whole(objects)),
        Format::Json => pretty(&whole(objects)),
        Format::Name => objects
            .iter()
            .map(|(resource, value)| format!("{}\n", object_name(resource, value)))
            .collect(),
        Format::Template(template) => template.render(&whole(objects)),
        Format::Columns(columns) => {
            let headings: Vec<String> = columns.iter().map(|(heading, _)| heading.clone()).collect();
            let cell = |template: &Template, value: &Value| {
                Some(template.render(value))
                    .filter(|text| !text.is_empty())
                    .unwrap_or("<none>".to_owned())
            };
            let rows = objects
                .iter()
                .map(|(_, value)| columns.iter().map(|(_, template)| cell(template, value)).collect())
                .collect();
            crate::table::align(&headings, rows, true)
        }
        Format::Table | Format::Wide => return Err(Failure::new("a table is printed by the server")),
    };
    out.write_all(text.as_bytes())?;
    Ok(())
}

/// `task.muster.dev/hello`.
pub fn object_name(resource: &Resource, object: &Value) -> String {
    format!(
        "{}/{}",
        resource.title(),
        object["metadata"]["name"].as_str().unwrap_or_default()
    )
}

/// Standard output, which may have gone away.
pub fn stdout() -> io::Stdout {
    io::stdout()
}

/// The entry of a map of texts, sorted.
pub fn pairs(map: &Value) -> Vec<(String, String)> {
    let empty = Map::new();
    let map = map.as_object().unwrap_or(&empty);
    map.iter()
        .map(|(key, value)| {
            (
                key.clone(),
                value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_read_alike_by_old_and_new_readers() {
        let texts = [
            "no",
            "yes",
            "on",
            "off",
            "y",
            "n",
            "true",
            "null",
            "~",
            "",
            "010",
            "1_000",
            "1e3",
            "0x1f",
            ".nan",
            "12:30",
            "2026-01-02",
            "a: b",
            "# x",
            "- x",
            "*x",
            "&x",
            "!x",
            "@x",
            "a\nb\n",
            " x ",
            "é",
            "\u{1b}[31m",
            "=",
            "<<",
        ];
        for text in texts {
            let object =
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"key": text}});
            let printed = yaml(&object);
            let source = crate::manifest::Source::new("x", printed.as_str());
            let (documents, report) = crate::manifest::read_sources(&[source]);
            assert!(report.diagnostics.is_empty(), "{printed}\n{report}");
            assert_eq!(documents[0].object, object, "{printed}");
        }
        for word in ["no", "y", "off", "010", "12:30"] {
            assert!(
                yaml(&json!({"a": word})).contains(['"', '\'']),
                "{}",
                yaml(&json!({"a": word}))
            );
        }
    }

    #[test]
    fn formats_are_read() {
        assert!(matches!(Format::parse(None), Ok(Format::Table)));
        assert!(matches!(Format::parse(Some("jsonpath={.a}")), Ok(Format::Template(_))));
        assert!(
            matches!(Format::parse(Some("custom-columns=A:.a,B:.b")), Ok(Format::Columns(columns)) if columns.len() == 2)
        );
        for bad in ["xml", "jsonpath", "jsonpath={.a", "custom-columns=A"] {
            assert!(Format::parse(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_object_is_itself_and_several_are_a_list() {
        let task = Resource {
            group: "muster.dev".into(),
            singular: "task".into(),
            ..Resource::default()
        };
        let object = |name: &str| (task.clone(), json!({"metadata": {"name": name}}));
        let printed = |format: &str, objects, single| {
            let mut out = Vec::new();
            print(&mut out, &Format::parse(Some(format)).expect("format"), objects, single).expect("printed");
            String::from_utf8(out).expect("text")
        };
        assert_eq!(
            printed("name", vec![object("a"), object("b")], false),
            "task.muster.dev/a\ntask.muster.dev/b\n"
        );
        assert_eq!(printed("jsonpath={.metadata.name}", vec![object("a")], true), "a");
        assert_eq!(
            printed(
                "jsonpath={.items[*].metadata.name}",
                vec![object("a"), object("b")],
                false
            ),
            "a b"
        );
        assert_eq!(
            printed("custom-columns=N:.metadata.name,X:.spec.x", vec![object("a")], true),
            "N   X\na   <none>\n"
        );
    }
}
