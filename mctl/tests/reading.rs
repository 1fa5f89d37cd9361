//! What manifests may be: files, directories, lists, JSON, aliases, merge keys; and what the blocks of errors look like.

use std::fs;

use mctl::manifest::{self, Document, Report, Source};
use serde_json::json;

fn read(text: &str) -> Result<Vec<Document>, Report> {
    let (documents, report) = manifest::read_sources(&[Source::new("test.yaml", text)]);
    if report.diagnostics.is_empty() {
        Ok(documents)
    } else {
        Err(report)
    }
}

fn good(text: &str) -> Vec<Document> {
    read(text).unwrap_or_else(|report| panic!("{report}"))
}

fn task(name: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1\nkind: Task\nmetadata: {{name: {name}}}\nspec: {{command: [x], resources: {{cpus: 1}}}}\n"
    )
}

#[test]
fn documents_and_lists_are_read_in_order() {
    let text = format!(
        "# nothing here\n---\n{}---\n---\napiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: ConfigMap, metadata: {{name: b, namespace: x}}}}\n...\n---\n{}",
        task("a"),
        task("c")
    );
    let documents = good(&text);
    let names: Vec<String> = documents.iter().map(Document::title).collect();
    assert_eq!(names, ["Task a", "ConfigMap b", "Task c"]);
    assert_eq!(documents[1].namespace.as_deref(), Some("x"));
}

#[test]
fn json_is_read_with_tabs_and_escapes() {
    let text = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"ConfigMap\",\n\t\"metadata\": {\"name\": \"a\"},\n\t\"data\": {\"k\": \"\\u00e9\\/\\ud83d\\ude00\\n\"}\n}\n";
    let documents = good(text);
    assert_eq!(documents[0].object["data"]["k"], "é/😀\n");
}

#[test]
fn aliases_and_merge_keys_are_written_out() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  labels: &labels {x: a, z: c}\n  annotations:\n    <<: *labels\n    x: b\ndata: {k: &k hello, l: *k}\n";
    let object = &good(text)[0].object;
    assert_eq!(object["metadata"]["annotations"], json!({"x": "b", "z": "c"}));
    assert_eq!(object["data"], json!({"k": "hello", "l": "hello"}));
}

#[test]
fn text_blocks_and_quotes_keep_their_text() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  block: |\n    a: b\n    no\n  folded: >-\n    one\n    two\n  quoted: 'no'\n  \"on\": \"\\tx\"\n  tagged: !!str 5\n";
    let data = good(text)[0].object["data"].clone();
    assert_eq!(
        data,
        json!({"block": "a: b\nno\n", "folded": "one two", "quoted": "no", "on": "\tx", "tagged": "5"})
    );
}

#[test]
fn what_kubectl_prints_is_read() {
    let text = format!(
        "apiVersion: v1\nitems:\n- {}\nkind: List\nmetadata:\n  resourceVersion: \"\"\n",
        task("a").trim_end().replace('\n', "\n  ").replace(
            "metadata: {name: a}",
            "metadata:\n    creationTimestamp: \"2026-01-01T00:00:00Z\"\n    generation: 1\n    name: a\n    resourceVersion: \"5\"\n    uid: x"
        ) + "\n  status: {phase: Running, unheardOf: 1}"
    );
    assert_eq!(good(&text).len(), 1);
}

#[test]
fn files_and_directories_are_read() {
    let directory = tempfile::tempdir().expect("directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    fs::create_dir(path("below")).expect("directory");
    fs::write(path("b.yaml"), task("b")).expect("file");
    fs::write(
        path("a.json"),
        "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}}",
    )
    .expect("file");
    fs::write(path("README.md"), "not: [a manifest").expect("file");
    fs::write(path("below/c.yml"), task("c")).expect("file");
    let names = |recursive| -> Vec<String> {
        let documents = manifest::read(&[path("")], recursive, &mut std::io::empty()).expect("readable");
        documents.into_iter().map(|document| document.name).collect()
    };
    assert_eq!(names(false), ["a", "b"]);
    assert_eq!(names(true), ["a", "b", "c"]);
    let mut stdin = std::io::Cursor::new(task("s"));
    let documents = manifest::read(&["-".to_owned()], false, &mut stdin).expect("readable");
    assert_eq!(documents[0].source.name, "stdin");
}

#[track_caller]
fn refused(path: &str, expect: &str) {
    let report = manifest::read(&[path.to_owned()], false, &mut std::io::empty()).expect_err("refused");
    assert!(report.to_string().contains(expect), "{report}");
}

#[test]
fn what_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().expect("directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    refused(&path("missing.yaml"), "no such file or directory");
    refused(&path(""), "there is no .yaml, .yml or .json file in this directory");
    refused("https://example.com/a.yaml", "curl -fsSL");
    fs::write(path("empty.yaml"), "# nothing\n---\n").expect("file");
    refused(&path("empty.yaml"), "there is no object in this file");
    fs::write(path("large.yaml"), format!("a: {}", "x".repeat(3 << 20))).expect("file");
    refused(&path("large.yaml"), "larger than 3 MiB");
    fs::write(path("utf16.yaml"), b"\xff\xfea\0").expect("file");
    refused(&path("utf16.yaml"), "UTF-16");
    let data: String = (0..1100)
        .map(|index| format!("  k{index}: \"{}\"\n", "x".repeat(1000)))
        .collect();
    let object = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x}}\ndata:\n{data}");
    fs::write(path("object.yaml"), object).expect("file");
    refused(&path("object.yaml"), "the object is larger than 1 MiB");
}

#[test]
fn all_mistakes_of_all_files_are_shown() {
    let sources = [
        Source::new("a.yaml", task("A")),
        Source::new("b.yaml", task("b")),
        Source::new(
            "c.yaml",
            task("c")
                .replace("command", "comand")
                .replace("cpus: 1", "cpus: 1, memory: 1GB, gpus: 0.5x"),
        ),
    ];
    let (_, report) = manifest::read_sources(&sources);
    insta::assert_snapshot!(report.to_string());
}

#[test]
fn a_block_shows_the_line_and_what_to_do() {
    let text = "apiVersion: muster.dev/v1\nkind: Task\nmetadata:\n  name: train\nspec:\n  command: [python, train.py]\n  resources: {cpus: 4, gpus: 1}\n  gpu:\n    memmory: 70Gi\n";
    let report = read(text).expect_err("refused");
    insta::assert_snapshot!(report.to_string());
    let coloured = report.render(mctl::style::Style::coloured());
    assert!(coloured.contains("\u{1b}[1;31merror[E0107]\u{1b}[0m"), "{coloured:?}");
    insta::assert_json_snapshot!(report.to_json());
}

#[test]
fn both_places_of_a_key_that_is_there_twice_are_shown() {
    let text = task("a") + "spec:\n  command: [y]\n";
    insta::assert_snapshot!(read(&text).expect_err("refused").to_string());
}

#[test]
fn nothing_in_a_manifest_steers_the_terminal() {
    let text = "apiVersion: muster.dev/v1\nkind: \"\\e[31mTask\\u202e\"\nmetadata: {name: x}\n";
    let report = read(text).expect_err("refused").to_string();
    assert!(!report.contains(['\u{1b}', '\u{202e}']), "{report:?}");
}

#[test]
fn the_servers_causes_are_shown_at_their_fields() {
    let text = "apiVersion: muster.dev/v1\nkind: Task\nmetadata:\n  name: train\nspec:\n  command: [x]\n  resources:\n    cpus: 4\n  env:\n    - name: A\n      value: b\n";
    let document = &good(text)[0];
    let causes = [
        (
            "FieldValueForbidden",
            "spec.resources.cpus",
            "Forbidden: more than the quota leaves",
        ),
        (
            "FieldValueInvalid",
            ".spec.env[0].value",
            "Invalid value: \"b\": must be c",
        ),
        ("FieldValueRequired", "spec.kill.signal", "Required value: today"),
    ];
    let diagnostics = causes
        .map(|(reason, field, message)| document.refused(reason, field, message))
        .to_vec();
    let report = Report {
        diagnostics,
        documents: 1,
        outcome: None,
    };
    insta::assert_snapshot!(report.to_string());
}
