//! Colour, where a person looks at it: only on a terminal, and not when `NO_COLOR` is set.

use std::io::IsTerminal;

/// Whether output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

/// What a text stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// A mistake.
    Error,
    /// A doubt.
    Warning,
    /// It is fine.
    Good,
    /// Lines and numbers around an excerpt.
    Frame,
    /// What matters.
    Bold,
    /// What matters less.
    Dim,
}

impl Style {
    /// Without colour.
    pub const fn plain() -> Style {
        Style { colour: false }
    }

    /// With colour.
    pub const fn coloured() -> Style {
        Style { colour: true }
    }

    /// As the environment and the terminal want it (<https://no-color.org>).
    pub fn detect(stream: &impl IsTerminal) -> Style {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = !set("NO_COLOR") && !dumb && (stream.is_terminal() || set("CLICOLOR_FORCE"));
        Style { colour }
    }

    /// The text in its colour.
    pub fn paint(self, paint: Paint, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Error => "1;31",
            Paint::Warning => "33",
            Paint::Good => "32",
            Paint::Frame => "34",
            Paint::Bold => "1",
            Paint::Dim => "2",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}
