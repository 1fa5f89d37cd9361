//! Finding and reading the files that `-f` names: files, directories, standard input.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::diagnostic::{Code, Diagnostic};
use super::limits;
use super::node::Span;

/// A file, read.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// Its path as it was given, or `stdin`.
    pub name: String,
    /// What is in it.
    pub text: String,
}

impl Source {
    /// A source of known text.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<Source> {
        Arc::new(Source {
            name: name.into(),
            text: text.into(),
        })
    }

    /// A line, from 1, without its end; empty when there is none.
    pub fn line(&self, line: usize) -> &str {
        self.text.lines().nth(line.saturating_sub(1)).unwrap_or_default()
    }
}

/// Reads everything that the paths name. What cannot be read is a mistake; the rest is read nevertheless.
pub fn read_all(paths: &[String], recursive: bool, stdin: &mut dyn Read) -> (Vec<Arc<Source>>, Vec<Diagnostic>) {
    let mut reader = Reader {
        recursive,
        sources: Vec::new(),
        diagnostics: Vec::new(),
        bytes: 0,
    };
    for path in paths {
        if path == "-" {
            reader.add("stdin", stdin);
        } else if path.starts_with("http://") || path.starts_with("https://") {
            let help = format!("fetch it first: curl -fsSL {path} | mctl apply -f -");
            reader
                .refuse(Code::Unreadable, path, "manifests are not fetched from the network")
                .help
                .push(help);
        } else {
            reader.path(path);
        }
    }
    (reader.sources, reader.diagnostics)
}

struct Reader {
    recursive: bool,
    sources: Vec<Arc<Source>>,
    diagnostics: Vec<Diagnostic>,
    bytes: u64,
}

impl Reader {
    fn refuse(&mut self, code: Code, name: &str, title: impl Into<String>) -> &mut Diagnostic {
        self.diagnostics
            .push(Diagnostic::new(code, &Source::new(name, ""), None, title));
        self.diagnostics.last_mut().expect("it was pushed a line above")
    }

    fn path(&mut self, name: &str) {
        match fs::metadata(name) {
            Ok(meta) if meta.is_dir() => self.directory(Path::new(name), 0),
            Ok(_) => self.file(name),
            Err(error) => {
                let title = match error.kind() {
                    std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
                    _ => error.to_string(),
                };
                self.refuse(Code::Unreadable, name, title);
            }
        }
    }

    fn file(&mut self, name: &str) {
        match fs::File::open(name) {
            Ok(mut file) => self.add(name, &mut file),
            Err(error) => {
                self.refuse(Code::Unreadable, name, error.to_string());
            }
        }
    }

    fn directory(&mut self, directory: &Path, depth: usize) {
        let name = directory.display().to_string();
        if depth > limits::DIRECTORIES_MAX {
            self.refuse(
                Code::Limit,
                &name,
                format!("more than {} directories inside each other", limits::DIRECTORIES_MAX),
            );
            return;
        }
        let entries = match fs::read_dir(directory).and_then(|entries| entries.collect::<Result<Vec<_>, _>>()) {
            Ok(entries) => entries,
            Err(error) => {
                self.refuse(Code::Unreadable, &name, error.to_string());
                return;
            }
        };
        let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        let before = self.sources.len() + self.diagnostics.len();
        for path in paths {
            let manifest = path
                .extension()
                .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
            if path.is_dir() {
                if self.recursive {
                    self.directory(&path, depth + 1);
                }
            } else if manifest {
                self.file(&path.display().to_string());
            }
        }
        if depth == 0 && before == self.sources.len() + self.diagnostics.len() {
            let hint = if self.recursive {
                ""
            } else {
                "; -R looks into the directories below it too"
            };
            self.refuse(
                Code::Unreadable,
                &name,
                format!("there is no .yaml, .yml or .json file in this directory{hint}"),
            );
        }
    }

    fn add(&mut self, name: &str, from: &mut dyn Read) {
        let mut bytes = Vec::new();
        if let Err(error) = from.take(limits::FILE_BYTES_MAX + 1).read_to_end(&mut bytes) {
            self.refuse(Code::Unreadable, name, error.to_string());
            return;
        }
        if bytes.len() as u64 > limits::FILE_BYTES_MAX {
            let title = format!("the file is larger than {} MiB", limits::FILE_BYTES_MAX >> 20);
            self.refuse(Code::Limit, name, title)
                .help
                .push("split it into several files".to_owned());
            return;
        }
        self.bytes += bytes.len() as u64;
        if self.bytes > limits::TOTAL_BYTES_MAX {
            let title = format!(
                "together the files are larger than {} MiB",
                limits::TOTAL_BYTES_MAX >> 20
            );
            self.refuse(Code::Limit, name, title)
                .help
                .push("apply them in several calls".to_owned());
            return;
        }
        match text(bytes) {
            Ok(text) => self.sources.push(Source::new(name, text)),
            Err(problem) => {
                let source = Source::new(name, problem.text);
                let mut diagnostic = Diagnostic::new(Code::NotText, &source, Some(problem.span), problem.title);
                diagnostic.help.extend(problem.help);
                self.diagnostics.push(diagnostic);
            }
        }
    }
}

struct NotText {
    text: String,
    span: Span,
    title: String,
    help: Option<String>,
}

/// The bytes as text without control characters; a byte order mark at the beginning is left out.
fn text(bytes: Vec<u8>) -> Result<String, NotText> {
    let place = |text: &str, at: usize| {
        let before = &text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Span {
            line,
            column,
            length: 1,
        }
    };
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        let span = Span {
            line: 1,
            column: 1,
            length: 1,
        };
        let title = "the file is UTF-16, not UTF-8".to_owned();
        let help = Some("save it as UTF-8: iconv -f UTF-16 -t UTF-8".to_owned());
        return Err(NotText {
            text: String::new(),
            span,
            title,
            help,
        });
    }
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let byte = error.as_bytes()[at];
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let span = place(&text, at);
            let title = format!("the file is not UTF-8: byte 0x{byte:02x}");
            return Err(NotText {
                text,
                span,
                title,
                help: Some("save it as UTF-8".to_owned()),
            });
        }
    };
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    let control =
        |c: &(usize, char)| (c.1.is_control() && !matches!(c.1, '\t' | '\n' | '\r' | '\u{85}')) || c.1 == '\u{feff}';
    let found = text.char_indices().find(control);
    match found {
        None => Ok(text),
        Some((at, character)) => {
            let span = place(&text, at);
            let title = format!("there is a control character, U+{:04X}, in the text", character as u32);
            let help = Some("remove it, or write it as an escape in double quotes".to_owned());
            Err(NotText {
                text,
                span,
                title,
                help,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_refused_with_their_place() {
        let place = |bytes: &[u8]| text(bytes.to_vec()).map_err(|problem| (problem.span.line, problem.span.column));
        assert_eq!(place(b"a: b\n"), Ok("a: b\n".to_owned()));
        assert_eq!(place(b"\xef\xbb\xbfa: b"), Ok("a: b".to_owned()));
        assert_eq!(place(b"a: b\nk: \xff"), Err((2, 4)));
        assert_eq!(place(b"a: \0"), Err((1, 4)));
        assert_eq!(place(b"a\x1b[31m"), Err((1, 2)));
        assert_eq!(place(b"\xff\xfea\0"), Err((1, 1)));
    }
}
