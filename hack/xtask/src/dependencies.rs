//! What comes from outside: every dependency is licensed such that Muster can be passed on, comes from the one registry, and is
//! none that is known to be abandoned or unsafe to hold. Advisories need a network and are not looked up here.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Licences that ask for no more than a notice, or for the source of changed files only.
const LICENSES: [&str; 11] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "Unicode-3.0",
    "Zlib",
];

/// Dependencies whose manifest names a file instead of a licence, with what the file says.
const LICENSE_FILES: [(&str, &str); 1] = [("rust-criu", "MIT")];

/// What must not come in, even by way of another, and what to take instead.
const BANNED: [(&str, &str); 4] = [
    ("serde_yaml", "archived; `yaml_serde` is its successor"),
    ("tokio-tar", "abandoned, and smuggles files; `tar` on a blocking thread"),
    ("openssl", "a C library to keep up with; `rustls`"),
    ("native-tls", "it is openssl here; `rustls`"),
];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

/// Checks what `Cargo.lock` names and lists everything that is wrong.
pub(crate) fn run(root: &Path) -> Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("what cargo metadata says")?;
    let problems: Vec<String> = metadata.packages.iter().filter_map(problem).collect();
    if !problems.is_empty() {
        bail!("dependencies: {} problems\n  {}", problems.len(), problems.join("\n  "));
    }
    println!("dependencies: {} packages, nothing wrong", metadata.packages.len());
    Ok(())
}

fn problem(package: &Package) -> Option<String> {
    let Package { name, version, .. } = package;
    if let Some((_, instead)) = BANNED.iter().find(|(banned, _)| banned == name) {
        return Some(format!("{name} {version}: {instead}"));
    }
    if package.source.as_deref().is_some_and(|source| source != REGISTRY) {
        return Some(format!("{name} {version}: it does not come from the registry"));
    }
    let named = LICENSE_FILES
        .iter()
        .find(|(of, _)| of == name)
        .map(|(_, license)| *license);
    let license = package.license.as_deref().or(named).unwrap_or("no licence");
    (!allowed(license)).then(|| format!("{name} {version}: `{license}` is not among the licences of hack/xtask"))
}

/// Whether one alternative of an SPDX expression consists of allowed licences. Brackets stand around alternatives only where
/// they are joined with `AND`, so an expression is a conjunction of disjunctions, or a plain disjunction of conjunctions.
fn allowed(expression: &str) -> bool {
    let one = |license: &str| LICENSES.contains(&license.trim().trim_end_matches('+'));
    let any = |choice: &str| choice.replace('/', " OR ").split(" OR ").any(one);
    if expression.contains('(') {
        return expression.replace(['(', ')'], "").split(" AND ").all(any);
    }
    expression
        .replace('/', " OR ")
        .split(" OR ")
        .any(|choice| choice.split(" AND ").all(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, expect: bool) {
        assert_eq!(allowed(expression), expect, "{expression}");
    }

    #[test]
    fn one_alternative_has_to_be_allowed() {
        check("MIT", true);
        check("GPL-3.0-only", false);
        check("MIT/Apache-2.0", true);
        check("LGPL-3.0 OR MPL-2.0", true);
        check("MPL-2.0+", true);
        check("MIT AND GPL-2.0-only", false);
        check("Apache-2.0 WITH LLVM-exception OR GPL-2.0-only", true);
        check("(MIT OR Apache-2.0) AND Unicode-3.0", true);
        check("(MIT OR Apache-2.0) AND AGPL-3.0-only", false);
        check("no licence", false);
    }

    #[test]
    fn what_is_banned_or_from_elsewhere_is_named() {
        let package = |name: &str, source: Option<&str>| Package {
            name: name.into(),
            version: "1.0.0".into(),
            license: Some("MIT".into()),
            source: source.map(Into::into),
        };
        assert_eq!(problem(&package("serde", Some(REGISTRY))), None);
        assert_eq!(
            problem(&package("serde_yaml", Some(REGISTRY))).as_deref(),
            Some("serde_yaml 1.0.0: archived; `yaml_serde` is its successor")
        );
        assert_eq!(
            problem(&package("x", Some("git+https://example.com/x"))).as_deref(),
            Some("x 1.0.0: it does not come from the registry")
        );
    }
}
