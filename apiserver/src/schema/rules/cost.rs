//! What a rule costs: an estimate from above, made of its words alone, and what becomes of it when the sizes of a value are known.

use kube_cel::cel::common::ast::{EntryExpr, Expr, LiteralValue};
use serde_json::Value;

/// What a rule costs, apart from what it meets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Words.
    words: u64,
    /// How deep expressions lie in each other.
    pub(super) levels: u32,
    /// How deep the one lies that is looked at.
    level: u32,
    /// How deep loops lie in each other.
    loops: u32,
    /// The longest list in the rule itself.
    literal: u64,
    /// Whether it reads texts from end to end.
    reads: bool,
    /// Whether it makes lists of texts.
    splits: bool,
    /// Whether it makes texts of others.
    writes: bool,
    /// How often it makes texts that are as long as two others multiplied.
    multiplies: u32,
    /// A name or a function that there is not.
    pub(super) unknown: Option<String>,
}

/// What a rule meets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    /// The longest list or map.
    list: u64,
    /// The longest text, in bytes.
    text: u64,
    /// All texts, in bytes.
    texts: u64,
}

/// Names that are not variables: of types, and what functions' names begin with.
const NAMES: [&str; 24] = [
    "self",
    "oldSelf",
    "int",
    "uint",
    "double",
    "bool",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "dyn",
    "timestamp",
    "duration",
    "google",
    "base64",
    "format",
    "ip",
    "cidr",
    "math",
    "sets",
    "strings",
    "optional",
];
/// Functions that read a text from its beginning to its end.
const READS: [&str; 16] = [
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "find",
    "findAll",
    "replace",
    "split",
    "indexOf",
    "lastIndexOf",
    "lowerAscii",
    "upperAscii",
    "trim",
    "substring",
    "quantity",
    "url",
];
const SPLITS: [&str; 3] = ["split", "findAll", "charAt"];
const WRITES: [&str; 5] = ["_+_", "join", "format", "replace", "quote"];
/// Makes a list out of nothing.
const MAKES_LISTS: &str = "range";

/// What an expression costs.
pub(super) fn measure(expression: &Expr) -> Cost {
    let mut cost = Cost::default();
    visit(expression, 0, &mut Vec::new(), &mut cost);
    cost
}

fn visit<'a>(expression: &'a Expr, loops: u32, bound: &mut Vec<&'a str>, cost: &mut Cost) {
    cost.words += 1;
    cost.loops = cost.loops.max(loops);
    cost.level += 1;
    cost.levels = cost.levels.max(cost.level);
    match expression {
        Expr::Unspecified => (),
        Expr::Literal(literal) => {
            if let LiteralValue::String(text) = literal {
                cost.words += text.inner().len() as u64 / 64;
            }
        }
        Expr::Ident(name) => {
            let name = name.trim_start_matches('.');
            if !NAMES.contains(&name) && !bound.contains(&name) && !name.starts_with('@') {
                cost.unknown.get_or_insert_with(|| name.to_owned());
            }
        }
        Expr::Select(select) => visit(&select.operand.expr, loops, bound, cost),
        Expr::Call(call) => {
            let name = call.func_name.as_str();
            cost.reads |= READS.contains(&name);
            cost.splits |= SPLITS.contains(&name);
            cost.writes |= WRITES.contains(&name);
            cost.multiplies += u32::from(name == "replace");
            if name == MAKES_LISTS {
                cost.unknown.get_or_insert_with(|| name.to_owned());
            }
            call.target
                .iter()
                .for_each(|target| visit(&target.expr, loops, bound, cost));
            call.args
                .iter()
                .for_each(|argument| visit(&argument.expr, loops, bound, cost));
        }
        Expr::List(list) => {
            cost.literal = cost.literal.max(list.elements.len() as u64);
            list.elements
                .iter()
                .for_each(|item| visit(&item.expr, loops, bound, cost));
        }
        Expr::Map(map) => entries(map.entries.iter().map(|entry| &entry.expr), loops, bound, cost),
        Expr::Struct(made) => entries(made.entries.iter().map(|entry| &entry.expr), loops, bound, cost),
        Expr::Comprehension(each) => {
            visit(&each.iter_range.expr, loops, bound, cost);
            visit(&each.accu_init.expr, loops, bound, cost);
            let outside = bound.len();
            bound.extend([each.iter_var.as_str(), each.accu_var.as_str()]);
            bound.extend(each.iter_var2.as_deref());
            visit(&each.loop_cond.expr, loops + 1, bound, cost);
            visit(&each.loop_step.expr, loops + 1, bound, cost);
            visit(&each.result.expr, loops, bound, cost);
            bound.truncate(outside);
        }
    }
    cost.level -= 1;
}

fn entries<'a>(all: impl Iterator<Item = &'a EntryExpr>, loops: u32, bound: &mut Vec<&'a str>, cost: &mut Cost) {
    for entry in all {
        match entry {
            EntryExpr::StructField(field) => visit(&field.value.expr, loops, bound, cost),
            EntryExpr::MapEntry(entry) => {
                visit(&entry.key.expr, loops, bound, cost);
                visit(&entry.value.expr, loops, bound, cost);
            }
        }
    }
}

impl Cost {
    /// Another expression is evaluated too.
    pub(super) fn add(&mut self, other: &Cost) {
        self.words += other.words;
        self.loops = self.loops.max(other.loops);
        self.literal = self.literal.max(other.literal);
        self.reads |= other.reads;
        self.splits |= other.splits;
        self.writes |= other.writes;
        self.multiplies += other.multiplies;
    }

    /// The steps that it takes at most, and the bytes that it makes.
    pub(super) fn of(&self, size: Size) -> (u64, u64) {
        let list = size.list.max(self.literal).max(if self.splits { size.text } else { 0 });
        let rounds = (1 + list).saturating_pow(self.loops);
        let reading = if self.reads { 1 + size.text / 1024 } else { 1 };
        let steps = self.words.saturating_mul(rounds).saturating_mul(reading);
        let text = (1 + size.texts).saturating_pow(1 + self.multiplies);
        let bytes = if self.writes { text.saturating_mul(rounds) } else { 0 };
        (steps, bytes)
    }
}

impl Size {
    /// Of a value.
    pub(super) fn of(value: &Value) -> Size {
        let mut size = Size::default();
        size.add(value);
        size
    }

    /// Another value is seen too.
    pub(super) fn add(&mut self, value: &Value) {
        let mut text = |length: usize| {
            self.text = self.text.max(length as u64);
            self.texts += length as u64;
        };
        match value {
            Value::String(value) => text(value.len()),
            Value::Array(list) => {
                self.list = self.list.max(list.len() as u64);
                list.iter().for_each(|item| self.add(item));
            }
            Value::Object(map) => {
                map.keys().for_each(|key| text(key.len()));
                self.list = self.list.max(map.len() as u64);
                map.values().for_each(|item| self.add(item));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => (),
        }
    }
}
