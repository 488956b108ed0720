//! Lines of several processes on one terminal: prefixed, coloured where somebody looks, kept back where nobody does.

use std::{
    collections::VecDeque,
    io::{IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
};

/// Lines that are kept back for the moment something fails.
const KEPT: usize = 200;

/// ANSI colours of the nodes, in turn; readable on light and dark backgrounds.
const NODE_COLOURS: [u8; 6] = [36, 35, 33, 34, 32, 31];

/// Whose line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// This command.
    Dev,
    /// The Redis it started.
    Redis,
    /// A node, by its number from 1.
    Node(u16),
}

/// Prints lines, or keeps the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Printer {
    colour: bool,
    /// `Some` keeps lines instead of printing them.
    kept: Option<Arc<Mutex<VecDeque<String>>>>,
}

// === impl Source ===

impl Source {
    fn colour(self) -> u8 {
        match self {
            Self::Dev => 1,
            Self::Redis => 90,
            Self::Node(index) => NODE_COLOURS[usize::from(index.wrapping_sub(1)) % NODE_COLOURS.len()],
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dev => f.write_str("dev"),
            Self::Redis => f.write_str("redis"),
            Self::Node(index) => write!(f, "node-{index}"),
        }
    }
}

// === impl Printer ===

impl Printer {
    /// Prints to standard output, in colour if that is a terminal and `NO_COLOR` is not set.
    pub(crate) fn stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: wanted && std::io::stdout().is_terminal(), kept: None }
    }

    /// Keeps the last lines for [`Printer::kept`].
    pub(crate) fn keeping() -> Self {
        Self { colour: false, kept: Some(Arc::default()) }
    }

    /// One line of `source`.
    pub(crate) fn line(&self, source: Source, text: &str) {
        let line = self.format(source, text);
        match &self.kept {
            None => {
                // A closed pipe (`| head`) is no reason to end the nodes.
                let _ = writeln!(std::io::stdout().lock(), "{line}");
            }
            Some(kept) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == KEPT {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        }
    }

    /// The last lines of a printer that keeps them.
    pub(crate) fn kept(&self) -> Vec<String> {
        let kept = self.kept.as_ref().map(|kept| kept.lock().unwrap_or_else(PoisonError::into_inner));
        kept.map(|kept| kept.iter().cloned().collect()).unwrap_or_default()
    }

    /// `text` in bold where colours are on.
    pub(crate) fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn format(&self, source: Source, text: &str) -> String {
        let name = format!("{source:<7}", source = source.to_string());
        if self.colour {
            format!("\x1b[{}m{name}│\x1b[0m {text}", source.colour())
        } else {
            format!("{name}| {text}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_plain_without_a_terminal_and_coloured_with_one() {
        let plain = Printer { colour: false, kept: None };
        assert_eq!(plain.format(Source::Node(2), "hello"), "node-2 | hello");
        let coloured = Printer { colour: true, kept: None };
        assert_eq!(coloured.format(Source::Node(2), "hello"), "\x1b[35mnode-2 │\x1b[0m hello");
    }

    #[test]
    fn a_keeping_printer_gives_back_the_last_lines() {
        let printer = Printer::keeping();
        for n in 0..=KEPT {
            printer.line(Source::Dev, &n.to_string());
        }
        let kept = printer.kept();
        assert_eq!((kept.len(), kept[0].as_str()), (KEPT, "dev    | 1"));
    }
}
