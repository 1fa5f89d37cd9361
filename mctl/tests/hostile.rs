//! Whatever a file holds, reading it ends with objects or with mistakes that can be shown, and soon.

use mctl::jsonpath::Template;
use mctl::manifest::{self, Source};
use mctl::style::Style;
use proptest::prelude::*;

const GOOD: &str = include_str!("../../manifests/examples/service.yaml");

/// Reads a text and shows what is wrong with it.
fn read(text: &str) {
    let (documents, report) = manifest::read_sources(&[Source::new("x.yaml", text)]);
    for diagnostic in &report.diagnostics {
        let block = diagnostic.render(Style::plain());
        assert!(block.starts_with("error["), "{block}");
        let span = diagnostic.span.unwrap_or_default();
        assert!(span.line <= text.lines().count().max(1), "{span:?} in {text:?}");
    }
    for document in documents {
        document
            .refused("FieldValueInvalid", "spec.env[0].value", "Invalid value: \"x\": y")
            .render(Style::coloured());
    }
}

/// Pieces that mean something in YAML.
fn piece() -> impl Strategy<Value = String> {
    let signs = [
        "- ",
        ": ",
        "\n",
        "  ",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "'",
        "&a ",
        "*a",
        "<<: *a",
        "|",
        ">-\n",
        "#",
        "!!str ",
        "? ",
        "---\n",
        "\t",
        "ä€🚀",
        "\\",
        "%",
        "null",
        "y",
    ];
    prop_oneof![
        prop::sample::select(signs.to_vec()).prop_map(str::to_owned),
        "[ -~]{0,6}",
        "\\PC{0,3}"
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_mangled_manifest_never_breaks_the_reader(edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, piece()), 1..6)) {
        let mut text: Vec<char> = GOOD.chars().collect();
        for (at, remove, insert) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + remove).min(text.len());
            text.splice(at..end, insert.chars());
        }
        read(&text.into_iter().collect::<String>());
    }

    #[test]
    fn a_heap_of_signs_never_breaks_the_reader(pieces in prop::collection::vec(piece(), 0..60)) {
        read(&pieces.concat());
    }

    #[test]
    fn a_template_is_refused_or_rendered(pieces in prop::collection::vec(prop::sample::select(vec!["{", "}", ".a", "[0]", "[*]", "[?(@.a==1)]", "..b", "range ", "end", "\"x\"", "[-5:9]", "é", "\\", "'", "]"]), 0..10)) {
        let value = serde_json::json!({"a": [{"a": 1, "b": "é"}, 2], "b": {"b": null}});
        if let Ok(template) = Template::parse(&pieces.concat()) {
            template.render(&value);
        }
    }
}

#[test]
fn a_long_hostile_file_is_read_in_time_that_grows_with_its_size() {
    // Each would take minutes if something were looked at again for each of its parts.
    let start = tokio::time::Instant::now();
    read(&"a: ".repeat(300_000));
    read(&format!(
        "{{{}}}",
        (0..100_000).map(|index| format!("k{index}: v,")).collect::<String>()
    ));
    read(&format!("a: &a x\nb: [{}]", "*a,".repeat(90_000)));
    read(&"- ".repeat(500_000));
    read(&"[".repeat(1_000_000));
    read(&"---\n".repeat(300_000));
    read(&format!("a: \"{}", "\\n".repeat(500_000)));
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
