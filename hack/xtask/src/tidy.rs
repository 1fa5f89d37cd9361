//! What a compiler does not check: which crate may know which, what pure files may not name, how long a file may be.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Each crate's folder, name, and the crates of ours that it may depend on. The list is the drawing in the README.
const CRATES: [(&str, &str, &[&str]); 14] = [
    ("api", "muster-api", &[]),
    ("api/apply", "muster-apply", &[]),
    ("api/client", "muster-client", &["muster-api"]),
    ("api/protobuf", "muster-protobuf", &[]),
    ("apiserver/store", "muster-store", &[]),
    (
        "apiserver",
        "muster-apiserver",
        &["muster-api", "muster-apply", "muster-protobuf", "muster-store"],
    ),
    ("controllers/allocator", "muster-allocator", &["muster-api"]),
    (
        "controllers",
        "muster-controllers",
        &["muster-api", "muster-client", "muster-allocator"],
    ),
    ("agentd/runtime", "muster-runtime", &[]),
    (
        "agentd",
        "muster-agentd",
        &["muster-api", "muster-client", "muster-runtime"],
    ),
    ("mctl", "mctl", ALL),
    ("e2e", "muster-e2e", &["muster-api", "muster-client"]),
    ("e2e/sim", "muster-sim", ALL),
    ("hack/xtask", "xtask", &[]),
];

const ALL: &[&str] = &[
    "muster-api",
    "muster-apply",
    "muster-client",
    "muster-protobuf",
    "muster-store",
    "muster-apiserver",
    "muster-allocator",
    "muster-controllers",
    "muster-runtime",
    "muster-agentd",
];

/// Libraries that only one crate may name, so that what they stand for can be exchanged.
const OWNED: [(&str, &str); 8] = [
    ("etcd-client", "muster-store"),
    ("redb", "muster-store"),
    ("containerd-client", "muster-runtime"),
    ("libcgroups", "muster-runtime"),
    ("libcontainer", "muster-runtime"),
    ("libseccomp", "muster-runtime"),
    ("oci-spec", "muster-runtime"),
    ("axum-server", "muster-apiserver"),
];

/// Files and folders of pure code, and the exceptions in them (the seam itself).
const PURE: [&str; 11] = [
    "api/src",
    "api/apply/src",
    "api/protobuf/src",
    "controllers/allocator/src",
    "controllers/src/planners",
    "apiserver/src/accept.rs",
    "agentd/src/plan.rs",
    "agentd/src/plan",
    "agentd/src/spec.rs",
    "agentd/src/status.rs",
    "agentd/src/devices/inject.rs",
];
const PURE_EXCEPT: [&str; 1] = ["api/src/env.rs"];
const IMPURE: [&str; 11] = [
    "async fn",
    ".await",
    "tokio::",
    "std::time::Instant",
    "SystemTime",
    "Timestamp::now",
    "Uuid::new_v4",
    "HashMap",
    "HashSet",
    "rand::",
    "std::fs",
];

/// Words that are not left behind, in any source file.
const LEFTOVERS: [&str; 4] = ["todo!(", "unimplemented!(", "#[ignore", "dbg!("];

const SOURCE_LINES_MAX: usize = 500;
const TEST_LINES_MAX: usize = 800;
const MAIN_LINES_MAX: usize = 30;

/// Runs every check and lists everything that is wrong.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut problems = Vec::new();
    edges(root, &mut problems)?;
    let mut sources = Vec::new();
    for (folder, _, _) in CRATES {
        for part in ["src", "tests", "benches", "examples"] {
            collect(&root.join(folder).join(part), &mut sources)?;
        }
    }
    for path in &sources {
        let shown = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        source(&shown, &text, &mut problems);
    }
    decisions(root, &mut problems)?;
    if !problems.is_empty() {
        bail!("tidy: {} problems\n  {}", problems.len(), problems.join("\n  "));
    }
    println!("tidy: {} files, {} crates, nothing wrong", sources.len(), CRATES.len());
    Ok(())
}

/// The dependencies of a crate, those for tests left out: `(line, name)`.
fn dependencies(manifest: &str) -> Vec<(usize, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for (index, line) in manifest.lines().map(str::trim).enumerate() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            if let Some(name) = section.strip_prefix("dependencies.") {
                found.push((index + 1, name.to_owned()));
            }
        } else if matches!(section.as_str(), "dependencies" | "build-dependencies")
            && let Some(name) = line
                .split(['.', ' ', '='])
                .next()
                .filter(|name| !name.is_empty() && !name.starts_with('#'))
        {
            found.push((index + 1, name.to_owned()));
        }
    }
    found
}

fn edges(root: &Path, problems: &mut Vec<String>) -> Result<()> {
    for (folder, name, allowed) in CRATES {
        let path = root.join(folder).join("Cargo.toml");
        let manifest = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for (line, dependency) in dependencies(&manifest) {
            let ours = CRATES.iter().any(|(_, name, _)| *name == dependency);
            if ours && !allowed.contains(&dependency.as_str()) {
                problems.push(format!(
                    "{folder}/Cargo.toml:{line}: {name} may not depend on {dependency}"
                ));
            }
            for (library, owner) in OWNED {
                if dependency == library && owner != name {
                    problems.push(format!("{folder}/Cargo.toml:{line}: only {owner} may name {library}"));
                }
            }
        }
    }
    Ok(())
}

fn collect(folder: &Path, sources: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
    Ok(())
}

fn source(shown: &str, text: &str, problems: &mut Vec<String>) {
    let lines = text.lines().count();
    let test = shown.contains("/tests/")
        || shown.contains("/conformance")
        || shown.contains("/benches/")
        || shown.ends_with("tests.rs");
    let most = match shown.rsplit('/').next() {
        Some("main.rs") if !shown.contains("xtask") && !test => MAIN_LINES_MAX,
        _ if test => TEST_LINES_MAX,
        // Unit tests stand at the end of the file that they test, and do not count.
        _ => {
            SOURCE_LINES_MAX
                + text
                    .lines()
                    .skip_while(|line| !line.starts_with("#[cfg(test)]"))
                    .count()
        }
    };
    if lines > most {
        problems.push(format!("{shown}: {lines} lines; at most {most}: it is two things"));
    }
    let pure = PURE.iter().any(|pure| shown.starts_with(pure)) && !PURE_EXCEPT.contains(&shown);
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let at = format!("{shown}:{}", index + 1);
        if shown != "hack/xtask/src/tidy.rs" {
            let left = LEFTOVERS.iter().filter(|word| code.contains(**word));
            problems.extend(left.map(|word| format!("{at}: `{word}` is not left behind")));
            if pure {
                let named = IMPURE.iter().filter(|word| code.contains(**word));
                problems.extend(named.map(|word| format!("{at}: pure code does not name `{word}`")));
            }
            if !shown.starts_with("apiserver/store") && code.contains("compares: Vec::new()") {
                problems.push(format!("{at}: every write to the store compares a revision"));
            }
        }
    }
}

/// Decision records are numbered without gaps and fit a page.
fn decisions(root: &Path, problems: &mut Vec<String>) -> Result<()> {
    let mut names: Vec<String> = fs::read_dir(root.join("hack/decisions"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    for (index, name) in names.iter().enumerate() {
        if !name.starts_with(&format!("{:04}-", index + 1)) {
            problems.push(format!("hack/decisions/{name}: expected number {:04}", index + 1));
        }
        let lines = fs::read_to_string(root.join("hack/decisions").join(name))?
            .lines()
            .count();
        if lines > 60 {
            problems.push(format!(
                "hack/decisions/{name}: {lines} lines; a record is one page (60)"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(shown: &str, text: &str, expect: &[&str]) {
        let mut problems = Vec::new();
        source(shown, text, &mut problems);
        assert_eq!(problems, expect);
    }

    #[test]
    fn pure_code_names_no_clock() {
        let text = "use std::collections::HashMap;\n// HashMap in a comment\n";
        check(
            "controllers/src/planners/x.rs",
            text,
            &["controllers/src/planners/x.rs:1: pure code does not name `HashMap`"],
        );
        check("controllers/src/driver.rs", text, &[]);
        check("api/src/env.rs", "Timestamp::now()", &[]);
    }

    #[test]
    fn unconditional_writes_are_found() {
        let text = "Txn { compares: Vec::new(), ops }";
        check(
            "apiserver/src/x.rs",
            text,
            &["apiserver/src/x.rs:1: every write to the store compares a revision"],
        );
    }

    #[test]
    fn long_files_are_found_and_their_unit_tests_do_not_count() {
        let code = "x\n".repeat(500);
        check("api/src/x.rs", &code, &[]);
        check("api/src/x.rs", &format!("{code}#[cfg(test)]\n{code}"), &[]);
        check(
            "api/src/x.rs",
            &format!("{code}x\n"),
            &["api/src/x.rs: 501 lines; at most 500: it is two things"],
        );
        check(
            "mctl/src/main.rs",
            &"x\n".repeat(31),
            &["mctl/src/main.rs: 31 lines; at most 30: it is two things"],
        );
    }

    #[test]
    fn dependencies_are_read_and_those_for_tests_are_not() {
        let manifest =
            "[dependencies]\nmuster-api.workspace = true\nkube = { workspace = true }\n[dev-dependencies]\nx = 1\n";
        let names: Vec<String> = dependencies(manifest).into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["muster-api", "kube"]);
    }
}
