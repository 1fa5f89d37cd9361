//! From the text of a file to the trees of its documents.
//!
//! Mistakes that leave the structure clear (a key twice, a key that is no text) are collected and reading goes on; after one of
//! syntax or of a limit, the rest of the file is not looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Tag};

use super::diagnostic::{Code, Diagnostic};
use super::limits;
use super::node::{Entry, Node, NodeValue, Span};
use super::scalar;
use super::source::Source;

/// The documents of a file that are not empty, and what is wrong with their syntax.
pub(super) fn parse(source: &Arc<Source>) -> (Vec<Arc<Node>>, Vec<Diagnostic>) {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: limits::DEPTH_MAX,
        block_nesting_limit: limits::DEPTH_MAX,
    };
    let mut builder = Builder {
        source,
        frames: Vec::new(),
        anchors: BTreeMap::new(),
        documents: Vec::new(),
        diagnostics: Vec::new(),
        weight: 0,
    };
    for next in Parser::new_from_str_with_options(&source.text, options) {
        match next {
            Ok((event, span)) => {
                if builder.event(event, convert(&span)).is_err() {
                    break;
                }
            }
            Err(error) => {
                let diagnostic = builder.syntax(&error);
                builder.diagnostics.push(diagnostic);
                break;
            }
        }
        if builder.diagnostics.len() >= limits::MISTAKES_MAX {
            break;
        }
    }
    (builder.documents, builder.diagnostics)
}

fn convert(span: &granit_parser::Span) -> Span {
    let one_line = span.start.line() == span.end.line();
    let length = if one_line {
        span.end.col().saturating_sub(span.start.col())
    } else {
        1
    };
    Span {
        line: span.start.line().max(1),
        column: span.start.col() + 1,
        length: length.max(1),
    }
}

/// A collection that is still open.
struct Frame {
    span: Span,
    anchor: usize,
    body: Body,
}

enum Body {
    Sequence(Vec<Arc<Node>>),
    Mapping {
        entries: Vec<Entry>,
        places: BTreeMap<String, Span>,
        key: Option<(String, Span)>,
        merged: Vec<Arc<Node>>,
    },
}

/// Reading ends here; why is among the diagnostics.
struct Stop;

struct Builder<'a> {
    source: &'a Arc<Source>,
    frames: Vec<Frame>,
    anchors: BTreeMap<usize, Arc<Node>>,
    documents: Vec<Arc<Node>>,
    diagnostics: Vec<Diagnostic>,
    /// The weight of the document so far, with each alias counted as often as it is used.
    weight: usize,
}

impl Builder<'_> {
    fn mistake(&mut self, code: Code, span: Span, title: impl Into<String>) -> &mut Diagnostic {
        self.diagnostics
            .push(Diagnostic::new(code, self.source, Some(span), title));
        self.diagnostics.last_mut().expect("it was pushed a line above")
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Stop> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = self.scalar(&text, style, tag.as_deref(), span);
                let raw = (style == ScalarStyle::Plain && tag.is_none()).then(|| text.into_owned());
                self.finish(Node::new(span, value), anchor, raw)
            }
            Event::SequenceStart(_, anchor, tag) => self.open(span, anchor, tag.as_deref(), Body::Sequence(Vec::new())),
            Event::MappingStart(_, anchor, tag) => {
                let body = Body::Mapping {
                    entries: Vec::new(),
                    places: BTreeMap::new(),
                    key: None,
                    merged: Vec::new(),
                };
                self.open(span, anchor, tag.as_deref(), body)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let frame = self.frames.pop().expect("the parser closes only what it has opened");
                let value = match frame.body {
                    Body::Sequence(items) => NodeValue::Sequence(items),
                    Body::Mapping {
                        mut entries,
                        places,
                        merged,
                        ..
                    } => {
                        merge(&mut entries, places, &merged);
                        NodeValue::Mapping(entries)
                    }
                };
                self.finish(Node::new(frame.span, value), frame.anchor, None)
            }
            Event::Alias(id) => self.alias(id, span),
            Event::DocumentEnd => {
                self.anchors.clear();
                self.weight = 0;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, span: Span, anchor: usize, tag: Option<&Tag>, body: Body) -> Result<(), Stop> {
        if self.frames.len() >= limits::DEPTH_MAX {
            let title = format!("nested deeper than {} levels", limits::DEPTH_MAX);
            self.mistake(Code::Limit, span, title);
            return Err(Stop);
        }
        let known = |tag: &Tag| matches!(tag.core_suffix(), Some("map" | "seq"));
        if let Some(tag) = tag.filter(|tag| !known(tag)) {
            self.tag(tag, span);
        }
        self.frames.push(Frame { span, anchor, body });
        Ok(())
    }

    fn tag(&mut self, tag: &Tag, span: Span) {
        let title = format!("the tag `{}` has no meaning in a manifest", tag.original());
        self.mistake(Code::Ambiguous, span, title)
            .help
            .push("leave the tag out".to_owned());
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> NodeValue {
        let plain = style == ScalarStyle::Plain;
        match tag.map(|tag| (tag, tag.core_suffix())) {
            Some((_, Some("str"))) => return NodeValue::String(text.to_owned()),
            Some((_, Some("int" | "float" | "bool" | "null"))) => {}
            Some((tag, _)) => self.tag(tag, span),
            None if !plain => return NodeValue::String(text.to_owned()),
            None => {}
        }
        scalar::resolve(text).unwrap_or_else(|problem| {
            self.mistake(Code::Ambiguous, span, problem);
            NodeValue::Number(None, text.to_owned())
        })
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<(), Stop> {
        let Some(node) = self.anchors.get(&id).cloned() else {
            self.mistake(
                Code::Ambiguous,
                span,
                "an alias inside of what it stands for has no end",
            );
            return Err(Stop);
        };
        if self.frames.len() + node.depth > limits::DEPTH_MAX {
            let title = format!("with this alias, nested deeper than {} levels", limits::DEPTH_MAX);
            self.mistake(Code::Limit, span, title);
            return Err(Stop);
        }
        self.weight = self.weight.saturating_add(node.size);
        if self.weight > limits::ALIAS_NODES_MAX {
            let title = format!(
                "with its aliases written out, the document has more than {} nodes",
                limits::ALIAS_NODES_MAX
            );
            self.mistake(Code::Limit, span, title)
                .help
                .push("write out what is needed; aliases of aliases grow without bound".to_owned());
            return Err(Stop);
        }
        self.place(node, span, None)
    }

    fn finish(&mut self, node: Node, anchor: usize, raw: Option<String>) -> Result<(), Stop> {
        let node = Arc::new(node);
        self.weight = self.weight.saturating_add(node.weight());
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let span = node.span;
        self.place(node, span, raw)
    }

    /// Puts a node where the open collection wants it. `span` is where it is used.
    fn place(&mut self, node: Arc<Node>, span: Span, raw: Option<String>) -> Result<(), Stop> {
        let Some(frame) = self.frames.last_mut() else {
            if !node.is_null() {
                self.documents.push(node);
            }
            return self.count(span);
        };
        let Body::Mapping {
            entries,
            places,
            key,
            merged,
        } = &mut frame.body
        else {
            if let Body::Sequence(items) = &mut frame.body {
                items.push(node);
            }
            return Ok(());
        };
        match key.take() {
            None => {
                let name = self.key(&node, span, raw);
                if let Some(Frame {
                    body: Body::Mapping { key, .. },
                    ..
                }) = self.frames.last_mut()
                {
                    *key = Some((name, span));
                }
            }
            Some((name, key_span)) if name == MERGE => {
                let parts = if node.items().is_empty() {
                    vec![node.clone()]
                } else {
                    node.items().to_vec()
                };
                let fine = parts.iter().all(|part| matches!(part.value, NodeValue::Mapping(_)));
                merged.extend(parts);
                if let Some(first) = places.insert(MERGE.to_owned(), key_span) {
                    let mistake = self.mistake(Code::DuplicateKey, key_span, "the key `<<` is there twice");
                    mistake.label = "merge a list of maps instead: `<<: [*a, *b]`".to_owned();
                    mistake.other = Some((first, "first here".to_owned()));
                }
                if !fine {
                    self.mistake(Code::Syntax, key_span, "`<<` merges maps, and this is none");
                }
            }
            Some((name, key_span)) => match places.get(&name) {
                Some(first) => {
                    let first = *first;
                    let mistake =
                        self.mistake(Code::DuplicateKey, key_span, format!("the key `{name}` is there twice"));
                    mistake.label = "again here".to_owned();
                    mistake.other = Some((first, "first here".to_owned()));
                }
                None => {
                    places.insert(name.clone(), key_span);
                    entries.push(Entry {
                        key: name,
                        key_span,
                        value: node,
                    });
                }
            },
        }
        Ok(())
    }

    fn count(&mut self, span: Span) -> Result<(), Stop> {
        if self.documents.len() > limits::DOCUMENTS_MAX {
            let title = format!("more than {} documents in one file", limits::DOCUMENTS_MAX);
            self.mistake(Code::Limit, span, title)
                .help
                .push("split it into several files".to_owned());
            self.documents.clear();
            return Err(Stop);
        }
        Ok(())
    }

    /// The text of a key; a key of another type is a mistake.
    fn key(&mut self, node: &Node, span: Span, raw: Option<String>) -> String {
        if let NodeValue::String(text) = &node.value {
            return if text == "<<" && raw.is_some() {
                MERGE.to_owned()
            } else {
                text.clone()
            };
        }
        let raw = raw.unwrap_or_default();
        let (title, help) = match &node.value {
            NodeValue::Bool(..) => (format!("the key `{raw}` is a boolean, not text"), format!("write \"{raw}\" in quotes")),
            NodeValue::Number(..) => (format!("the key `{raw}` is a number, not text"), format!("write \"{raw}\" in quotes")),
            NodeValue::Null => ("a key is empty".to_owned(), "write the name of a field before the colon".to_owned()),
            _ => (
                format!("{} cannot be a key", node.kind()),
                "keys are text; a text that begins with `{` or `[` needs quotes, and a template has to be rendered first".to_owned(),
            ),
        };
        self.mistake(Code::WrongType, span, title).help.push(help);
        if raw.is_empty() {
            format!("\u{0}{}:{}", span.line, span.column)
        } else {
            raw
        }
    }

    fn syntax(&self, error: &ScanError) -> Diagnostic {
        let marker = error.marker();
        let lines = self.source.text.lines().count().max(1);
        let line = marker.line().clamp(1, lines);
        let column = if marker.line() > lines {
            self.source.line(lines).chars().count() + 1
        } else {
            marker.col() + 1
        };
        let span = Span {
            line,
            column,
            length: 1,
        };
        let at = self.source.line(line).chars().nth(column - 1);
        let (title, help) = explain(error.kind(), at, self.source.line(line));
        let code = if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
            Code::Limit
        } else {
            Code::Syntax
        };
        let diagnostic = Diagnostic::new(code, self.source, Some(span), title);
        if help.is_empty() {
            diagnostic
        } else {
            diagnostic.help(help)
        }
    }
}

/// Stands for the key `<<`; a NUL cannot come from a file.
const MERGE: &str = "\u{0}merge";

/// Adds what `<<` brings; what is written in the map itself wins, then the earlier of the merged ones.
fn merge(entries: &mut Vec<Entry>, mut places: BTreeMap<String, Span>, merged: &[Arc<Node>]) {
    for entry in merged.iter().flat_map(|node| node.entries()) {
        if !places.contains_key(&entry.key) {
            places.insert(entry.key.clone(), entry.key_span);
            entries.push(entry.clone());
        }
    }
}

/// What a mistake of syntax means to whoever wrote it, and what to do.
fn explain(kind: &ErrorKind, at: Option<char>, line: &str) -> (String, String) {
    use ErrorKind as E;
    let tab = at == Some('\t') || line.trim_start_matches(' ').starts_with('\t');
    if ["<<<<<<<", "=======", ">>>>>>>"]
        .iter()
        .any(|mark| line.starts_with(mark))
    {
        return (
            "this is an unresolved conflict of version control".to_owned(),
            "resolve it first".to_owned(),
        );
    }
    let (title, help) = match kind {
        E::TabNotAllowed
        | E::TabInBlockIndentation
        | E::TabInIndentation
        | E::TabInPlainScalar
        | E::TabAtBlockScalarStart => ("a tab stands where YAML wants spaces", "indent with spaces"),
        _ if tab => ("a tab stands where YAML wants spaces", "indent with spaces"),
        E::MappingValueNotAllowed | E::InvalidColonPlacement | E::InvalidMappingValueWhitespace => (
            "a `:` is not expected here",
            "is the line indented as its neighbours are, and every bracket and quote above it closed? A text with `: ` in it needs quotes",
        ),
        E::SimpleKeyExpected | E::InvalidSimpleKey | E::ExpectedBlockMappingKey | E::InvalidIndentation => (
            "this line does not fit to the lines above it",
            "every field is `name: value`, indented as its neighbours are",
        ),
        E::ExpectedBlockSequenceEntry | E::BlockSequenceEntryNotAllowed | E::InvalidBlockEntryWhitespace => (
            "this line does not fit to the list above it",
            "every item of a list begins with `- `, indented as its neighbours are",
        ),
        E::ExpectedFlowSequenceSeparator | E::UnexpectedEofFlowSequence => (
            "`,` or `]` is missing",
            "items are separated by `,` and the list ends with `]`",
        ),
        E::ExpectedFlowMappingSeparator | E::UnexpectedEofFlowMapping | E::UnexpectedEofImplicitFlowMapping => (
            "`,` or `}` is missing",
            "entries are separated by `,` and the map ends with `}`",
        ),
        E::UnclosedFlowCollection { .. } => ("a bracket is not closed", ""),
        E::MismatchedFlowCollectionEnd { .. } | E::MisplacedFlowCollectionEnd => {
            ("a closing bracket does not fit to an open one", "")
        }
        E::UnclosedQuotedScalar | E::DocumentIndicatorInQuotedScalar => ("a quote is not closed", ""),
        E::InvalidTrailingDoubleQuotedScalar | E::InvalidTrailingSingleQuotedScalar => (
            "there is more text after the closing quote",
            "quotes go around all of the text, or around none of it",
        ),
        E::UnknownQuotedScalarEscape => (
            "there is no such escape in double quotes",
            "write `\\\\` for a backslash, or use single quotes",
        ),
        E::InvalidQuotedScalarHexEscape
        | E::InvalidLowSurrogateHexEscape
        | E::InvalidLowSurrogate
        | E::MissingLowSurrogate
        | E::UnpairedLowSurrogate
        | E::InvalidUnicodeEscape => (
            "an escape in double quotes is no character",
            "write it as `\\x41`, `\\u0041` or `\\U00000041`",
        ),
        E::UnknownAnchor => (
            "this alias stands for nothing",
            "an anchor `&name` must come before its alias `*name`, in the same document",
        ),
        E::MissingAnchorOrAliasName => (
            "`&` and `*` need a name behind them",
            "a text that begins with `&` or `*` needs quotes",
        ),
        E::UnexpectedCharacter {
            character: '%' | '@' | '`',
        } => ("a text cannot begin with this character", "put the text in quotes"),
        E::RecursionLimitExceeded => {
            return (
                format!("nested deeper than {} levels", limits::DEPTH_MAX),
                String::new(),
            );
        }
        E::UndeclaredTagHandle | E::InvalidTagTerminator | E::MissingTagUri | E::UnclosedVerbatimTag => {
            ("this is no tag", "a text that begins with `!` needs quotes")
        }
        E::InvalidBlockScalarHeader => ("nothing may stand behind `|` or `>` in its line", ""),
        E::InvalidBlockScalarIndent => ("a line of the text block is indented less than its first line", ""),
        E::InvalidQuotedScalarIndent | E::InvalidFlowScalarIndent => {
            ("a continued line is indented less than what it belongs to", "")
        }
        E::ExpectedDocumentStart | E::InvalidDocumentEnd => (
            "this does not belong to the document above",
            "separate documents with a line `---`",
        ),
        E::UnexpectedEof | E::UnexpectedEofBlockMapping | E::UnexpectedEofBlockSequence => {
            ("the file ends in the middle of a document", "")
        }
        E::CommentInterceptedScalar | E::CommentNotSeparated => (
            "a comment stands inside a text",
            "a `#` in a text needs quotes around the text",
        ),
        other => return (format!("this is not YAML: {other}"), String::new()),
    };
    (title.to_owned(), help.to_owned())
}
