//! What is wrong with a manifest, shown as a compiler would: file, line, column, the line itself, a caret, and what to do.
//!
//! A report always ends with the sentence that nothing was applied, because nothing is sent before everything is read.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use serde_json::{Value, json};

use super::node::Span;
use super::source::Source;
use crate::style::{Paint, Style};

/// What kind of mistake; the numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// A file cannot be read.
    Unreadable = 101,
    /// The bytes are not text.
    NotText = 102,
    /// Something is larger, deeper or more than allowed.
    Limit = 103,
    /// It is not YAML or JSON.
    Syntax = 104,
    /// A key is there twice.
    DuplicateKey = 105,
    /// It is no object: apiVersion, kind or name is missing or wrong.
    NotAnObject = 106,
    /// There is no such field.
    UnknownField = 107,
    /// A value has the wrong type.
    WrongType = 108,
    /// A value is not allowed.
    InvalidValue = 109,
    /// A field is missing.
    Missing = 110,
    /// YAML that readers disagree about, or that has no meaning in a manifest.
    Ambiguous = 111,
    /// There is no such kind.
    UnknownKind = 112,
    /// The server refused it.
    Refused = 113,
    /// Somebody else owns the field and says something else.
    Conflict = 114,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E{:04}", *self as u16)
    }
}

/// One mistake.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// What kind.
    pub code: Code,
    /// Whether it is only a warning.
    pub warning: bool,
    /// What is wrong, in one line.
    pub title: String,
    /// In which file.
    pub source: Arc<Source>,
    /// Where in it; `None`: the file as a whole.
    pub span: Option<Span>,
    /// The text at the caret.
    pub label: String,
    /// Another place that belongs to it, with what it is.
    pub other: Option<(Span, String)>,
    /// What to do.
    pub help: Vec<String>,
    /// The path of the field.
    pub field: Option<String>,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

impl Diagnostic {
    /// A mistake at a place.
    pub fn new(code: Code, source: &Arc<Source>, span: Option<Span>, title: impl Into<String>) -> Diagnostic {
        Diagnostic {
            code,
            warning: false,
            title: title.into(),
            source: source.clone(),
            span,
            label: String::new(),
            other: None,
            help: Vec::new(),
            field: None,
            suggestion: None,
        }
    }

    /// With a text at the caret.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Diagnostic {
        self.label = label.into();
        self
    }

    /// With what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help.push(help.into());
        self
    }

    /// With another place.
    #[must_use]
    pub fn other(mut self, span: Span, label: impl Into<String>) -> Diagnostic {
        self.other = Some((span, label.into()));
        self
    }

    /// With the path of the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Diagnostic {
        self.field = Some(field.into());
        self
    }

    /// With what was probably meant; it stands at the caret.
    #[must_use]
    pub fn suggest(mut self, suggestion: Option<&str>) -> Diagnostic {
        if let Some(word) = suggestion {
            self.label = format!("did you mean `{word}`?");
            self.suggestion = Some(word.to_owned());
        }
        self
    }

    /// The block that is shown.
    pub fn render(&self, style: Style) -> String {
        let mut text = String::new();
        let (word, paint) = if self.warning {
            ("warning", Paint::Warning)
        } else {
            ("error", Paint::Error)
        };
        let head = style.paint(paint, &format!("{word}[{}]", self.code));
        let title = clean(&self.title);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{head}: {}", style.paint(Paint::Bold, &title));
        let Some(span) = self.span else {
            let _ = writeln!(
                text,
                "  {} {}",
                style.paint(Paint::Frame, "-->"),
                clean(&self.source.name)
            );
            self.render_help(&mut text, 1, style);
            return text;
        };
        let place = format!("{}:{}:{}", clean(&self.source.name), span.line, span.column);
        let _ = writeln!(text, "  {} {place}", style.paint(Paint::Frame, "-->"));
        let last = self
            .other
            .as_ref()
            .map_or(span.line, |(other, _)| other.line.max(span.line));
        let width = last.to_string().len();
        let mut marks = vec![(span, self.label.as_str(), '^')];
        if let Some((other, label)) = &self.other {
            marks.push((*other, label.as_str(), '-'));
            marks.sort_by_key(|(span, _, _)| *span);
        }
        let mut shown = 0;
        for (mark, label, sign) in marks {
            if shown != 0 && mark.line > shown + 2 {
                let _ = writeln!(text, "{}", style.paint(Paint::Frame, &format!("{:>width$} ⋮", "")));
            }
            if mark.line > 1 && mark.line - 1 > shown {
                self.render_line(&mut text, mark.line - 1, width, style);
            }
            if mark.line > shown {
                self.render_line(&mut text, mark.line, width, style);
            }
            self.render_mark(&mut text, mark, label, sign, width, style);
            shown = mark.line;
        }
        self.render_help(&mut text, width, style);
        text
    }

    fn render_line(&self, text: &mut String, line: usize, width: usize, style: Style) {
        let (excerpt, _) = excerpt(self.source.line(line), self.focus(line));
        let gutter = style.paint(Paint::Frame, &format!("{line:>width$} |"));
        let _ = writeln!(text, "{}", format!("{gutter} {excerpt}").trim_end());
    }

    fn render_mark(&self, text: &mut String, mark: Span, label: &str, sign: char, width: usize, style: Style) {
        let line = self.source.line(mark.line);
        let (shown, skipped) = excerpt(line, self.focus(mark.line));
        let indent = (mark.column - 1).saturating_sub(skipped);
        let room = shown.chars().count().saturating_sub(indent).max(1);
        let sign: String = std::iter::repeat_n(sign, mark.length.clamp(1, room)).collect();
        let gutter = style.paint(Paint::Frame, &format!("{:>width$} |", ""));
        let note = clean(label);
        let paint = if sign.starts_with('^') && !self.warning {
            Paint::Error
        } else {
            Paint::Warning
        };
        let marked = style.paint(paint, format!("{sign} {note}").trim_end());
        let _ = writeln!(text, "{gutter} {:indent$}{marked}", "");
    }

    /// The column that must be seen of a line.
    fn focus(&self, line: usize) -> usize {
        let spans = self.span.iter().chain(self.other.iter().map(|(span, _)| span));
        spans
            .filter(|span| span.line == line)
            .map(|span| span.column)
            .min()
            .unwrap_or(1)
    }

    fn render_help(&self, text: &mut String, width: usize, style: Style) {
        for help in &self.help {
            let gutter = style.paint(Paint::Frame, &format!("{:>width$} =", ""));
            let _ = writeln!(text, "{gutter} {} {}", style.paint(Paint::Bold, "help:"), clean(help));
        }
    }

    /// The machine's form.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "code": self.code.to_string(),
            "severity": if self.warning { "warning" } else { "error" },
            "message": self.title,
            "file": self.source.name,
        });
        let mut set = |key: &str, add: Value| value[key] = add;
        if let Some(span) = self.span {
            set("line", span.line.into());
            set("column", span.column.into());
        }
        if let Some(field) = &self.field {
            set("field", field.as_str().into());
        }
        if let Some(suggestion) = &self.suggestion {
            set("suggestion", suggestion.as_str().into());
        }
        if !self.help.is_empty() {
            set("help", self.help.join("; ").into());
        }
        value
    }
}

/// The longest part of a line that is shown.
const EXCERPT_MAX: usize = 100;

/// The part of a line around a column, fit to be printed, and how many characters were left out before it.
fn excerpt(line: &str, column: usize) -> (String, usize) {
    let length = line.chars().count();
    let skip = if length <= EXCERPT_MAX {
        0
    } else {
        (column - 1).saturating_sub(EXCERPT_MAX / 3)
    };
    let part: String = line.chars().skip(skip).take(EXCERPT_MAX).collect();
    (clean(&part), skip)
}

/// The text without characters that would steer a terminal; each becomes one that takes the same place.
pub fn clean(text: &str) -> String {
    let printable = |c: char| match c {
        '\t' | '\n' | '\r' => ' ',
        c if c.is_control()
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200b}' | '\u{feff}') =>
        {
            '\u{fffd}'
        }
        c => c,
    };
    text.chars().map(printable).collect()
}

/// The most mistakes that are shown in full.
const SHOWN_MAX: usize = 20;

/// Everything that is wrong with what was read.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The mistakes, in the order of files and lines.
    pub diagnostics: Vec<Diagnostic>,
    /// How many documents were looked at.
    pub documents: usize,
    /// What happened to the cluster; by default that nothing was applied.
    pub outcome: Option<String>,
}

impl Report {
    /// All blocks and the sentence at the end.
    pub fn render(&self, style: Style) -> String {
        let mut text = String::new();
        for diagnostic in self.diagnostics.iter().take(SHOWN_MAX) {
            text.push_str(&diagnostic.render(style));
        }
        if let Some(more) = self.diagnostics.len().checked_sub(SHOWN_MAX).filter(|more| *more > 0) {
            let _ = writeln!(text, "… and {more} more");
        }
        text.push_str(&self.summary());
        text
    }

    /// The sentence at the end.
    pub fn summary(&self) -> String {
        let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        let errors = self.diagnostics.iter().filter(|diagnostic| !diagnostic.warning).count();
        let outcome = self.outcome.as_deref().unwrap_or("nothing was applied");
        format!(
            "{outcome} ({} in {})",
            plural(errors, "error"),
            plural(self.documents, "document")
        )
    }

    /// The machine's form.
    pub fn to_json(&self) -> Value {
        let errors: Vec<Value> = self.diagnostics.iter().map(Diagnostic::to_json).collect();
        json!({ "errors": errors, "documents": self.documents, "summary": self.summary() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Style::plain()))
    }
}
