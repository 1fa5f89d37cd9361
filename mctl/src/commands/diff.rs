//! `mctl diff`: what an apply would change, as the server would do it.

use serde_json::Value;

use crate::apply_args::DiffArgs;
use crate::failure::{Exit, Failure, Outcome};
use crate::manifest::Report;
use crate::manifest::diagnostic::clean;
use crate::output;
use crate::owners::LAST_APPLIED;
use crate::rest::CallError;
use crate::session::{Session, Terminal, read_files};
use crate::style::{Paint, Style};

use super::apply::{Server, diagnose, items, namespace_comes};
use super::applyset::{self, ApplySet};

/// So many lines around a change are shown.
const CONTEXT: usize = 3;
/// Objects with more lines are compared as a whole: the table below would have more than 25 million cells.
const LINES_MAX: usize = 5000;

/// Runs the command: exit code 2 when there are differences.
pub async fn run(session: &Session, args: DiffArgs, terminal: &mut Terminal) -> Outcome {
    if args.files.filename.is_empty() {
        return Err(Failure::new("name the manifests: mctl diff -f FILE"));
    }
    let documents = read_files(&args.files, terminal)?;
    let catalogue = session.catalogue().await?;
    let mut items = items(session, &catalogue, &documents)?;
    let set = match applyset::named(args.applyset.as_deref(), args.prune)? {
        Some(word) => Some(ApplySet::open(session, &catalogue, word, &mut items).await?),
        None => None,
    };
    let server = Server {
        rest: &session.rest,
        manager: &args.field_manager,
        force: args.force_conflicts,
    };
    let mut report = Report {
        documents: items.len(),
        outcome: Some("nothing was compared".to_owned()),
        ..Report::default()
    };
    let mut changes = Vec::new();
    for item in &items {
        let path = item.resource.object_path(&item.namespace, &item.document.name);
        let live = match session.rest.get(&path).await {
            Ok(live) => live,
            Err(error) if error.is_not_found() => Value::Null,
            Err(error) => return Err(error.into()),
        };
        let after = match server.apply(item, true).await {
            Ok((_, after, _)) => after,
            Err(refused) if namespace_comes(&items, item, &refused.error) => item.object.clone(),
            Err(refused) if matches!(refused.error, CallError::Status(_)) => {
                report.diagnostics.extend(diagnose(item.document, &refused));
                continue;
            }
            Err(refused) => return Err(refused.error.into()),
        };
        changes.push((format!("{}/{}", item.resource.title(), item.document.name), live, after));
    }
    if !report.diagnostics.is_empty() {
        return Err(report.into());
    }
    if let Some(set) = &set {
        let uid = |(_, _, after): &(String, Value, Value)| after["metadata"]["uid"].as_str().map(str::to_owned);
        let kept = changes.iter().filter_map(uid).collect();
        for (resource, object) in set.left_over(&kept, terminal).await? {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            changes.push((format!("{}/{name}", resource.title()), object, Value::Null));
        }
    }
    let mut exit = Exit::Done;
    for (name, live, after) in changes {
        let text = difference(&name, &comparable(&live), &comparable(&after), terminal.out_style);
        if !text.is_empty() {
            exit = Exit::Differences;
            terminal.text(text)?;
        }
    }
    Ok(exit)
}

/// The object without what the server counts and notes.
fn comparable(object: &Value) -> String {
    if object.is_null() {
        return String::new();
    }
    let mut object = output::tidy(object, false);
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["resourceVersion", "generation", "uid", "creationTimestamp"] {
            metadata.remove(field);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    output::yaml(&object)
}

/// Both texts, line by line; nothing when they are equal.
fn difference(name: &str, before: &str, after: &str, style: Style) -> String {
    if before == after {
        return String::new();
    }
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let edits = edits(&old, &new);
    let changed: Vec<usize> = (0..edits.len()).filter(|index| edits[*index].0 != ' ').collect();
    let near = |index: usize| changed.iter().any(|change| change.abs_diff(index) <= CONTEXT);
    let mut text = style.paint(Paint::Bold, &format!("--- {name}\n+++ {name}, as it would be")) + "\n";
    let mut skipped = false;
    for (index, (sign, line)) in edits.iter().enumerate() {
        if !near(index) {
            skipped = true;
            continue;
        }
        if std::mem::take(&mut skipped) {
            text.push_str(&style.paint(Paint::Frame, "⋮"));
            text.push('\n');
        }
        let line = format!("{sign}{}", clean(line));
        let line = match sign {
            '+' => style.paint(Paint::Good, &line),
            '-' => style.paint(Paint::Error, &line),
            _ => line,
        };
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The lines of both texts in order: ` ` in both, `-` in the old one, `+` in the new one; as few of the latter as can be.
fn edits<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    if old.len() > LINES_MAX || new.len() > LINES_MAX {
        let removed = old.iter().map(|line| ('-', *line));
        return removed.chain(new.iter().map(|line| ('+', *line))).collect();
    }
    // The longest common subsequence of what follows, for each pair of positions.
    let width = new.len() + 1;
    let mut common = vec![0u16; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = if old[i] == new[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut edits = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            edits.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[(i + 1) * width + j] >= common[i * width + j + 1]) {
            edits.push(('-', old[i]));
            i += 1;
        } else {
            edits.push(('+', new[j]));
            j += 1;
        }
    }
    edits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_shown_with_what_is_around_them() {
        let before = "a\nb\nc\nd\ne\nf\ng\nh\ni\n";
        let after = "a\nb\nc\nd\ne\nF\ng\nh\ni\nj\n";
        insta::assert_snapshot!(difference("task/x", before, after, Style::plain()), @"
        --- task/x
        +++ task/x, as it would be
        ⋮
         c
         d
         e
        -f
        +F
         g
         h
         i
        +j
        ");
        assert_eq!(difference("x", before, before, Style::plain()), "");
    }

    #[test]
    fn a_new_object_is_all_new() {
        let text = difference("x", "", "a\nb\n", Style::plain());
        assert!(text.ends_with("+a\n+b\n"), "{text}");
    }
}
