//! Every bad manifest is refused, with the mistake that it names at the place that it names; every example is read.

use std::fs;
use std::path::{Path, PathBuf};

use mctl::manifest::{self, Report};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Result<Vec<manifest::Document>, Report> {
    manifest::read(&[path.display().to_string()], false, &mut std::io::empty())
}

/// `# expect: TEXT @ LINE:COLUMN`
fn expectation(path: &Path) -> (String, usize, usize) {
    let bytes = fs::read(path).expect("file");
    let text = String::from_utf8_lossy(&bytes);
    let first = text.lines().next().expect("line");
    let rest = first
        .trim_start_matches('\u{feff}')
        .strip_prefix("# expect: ")
        .expect("`# expect: …` in the first line");
    let (message, place) = rest.rsplit_once(" @ ").expect("` @ line:column`");
    let (line, column) = place.split_once(':').expect("line:column");
    (
        message.to_owned(),
        line.parse().expect("line"),
        column.parse().expect("column"),
    )
}

fn mismatch(path: &Path) -> Option<String> {
    let (message, line, column) = expectation(path);
    let name = path.file_name().expect("name").to_string_lossy().into_owned();
    let report = match read(path) {
        Ok(_) => return Some(format!("{name}: was taken")),
        Err(report) => report,
    };
    let text = report.to_string();
    if !text
        .lines()
        .last()
        .is_some_and(|last| last.starts_with("nothing was applied ("))
    {
        return Some(format!("{name}: does not say that nothing was applied:\n{text}"));
    }
    let found = report.diagnostics.iter().any(|diagnostic| {
        let block = diagnostic.render(mctl::style::Style::plain());
        let there = diagnostic
            .span
            .is_some_and(|span| (span.line, span.column) == (line, column));
        there && block.contains(&message) && block.contains(&format!("{name}:{line}:{column}"))
    });
    (!found).then(|| format!("{name}: expected `{message}` at {line}:{column}, but got\n{text}"))
}

#[test]
fn every_bad_manifest_is_refused_where_it_is_wrong() {
    let files = files(&root().join("tests/bad-manifests"));
    assert!(files.len() >= 200, "only {} bad manifests", files.len());
    let mismatches: Vec<String> = files.iter().filter_map(|path| mismatch(path)).collect();
    assert!(
        mismatches.is_empty(),
        "{} of {}:\n{}",
        mismatches.len(),
        files.len(),
        mismatches.join("\n")
    );
}

#[test]
fn a_bad_manifest_spoils_the_good_ones_beside_it() {
    let good = root().join("../manifests/examples/hello.yaml").display().to_string();
    for path in files(&root().join("tests/bad-manifests")) {
        let both = [good.clone(), path.display().to_string()];
        assert!(
            manifest::read(&both, false, &mut std::io::empty()).is_err(),
            "{}",
            path.display()
        );
    }
}

#[test]
fn every_example_is_read() {
    let files = files(&root().join("../manifests/examples"));
    assert!(files.len() >= 6, "{files:?}");
    for path in files {
        let documents = read(&path).unwrap_or_else(|report| panic!("{report}"));
        assert!(!documents.is_empty(), "{}", path.display());
    }
}
