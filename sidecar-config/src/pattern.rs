//! Patterns of channel names, in which `*` matches any sequence of characters.

use std::{fmt, str::FromStr};

/// Pattern of channel names. `*` matches any sequence of characters, including none; all other characters match
/// themselves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(String);

/// Error for a text that is not a valid pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a channel pattern: it must not be empty or contain white space, control characters, `{{` or `}}`"
)]
pub struct InvalidPattern(String);

impl Pattern {
    /// Returns `true` if the whole of `name` matches. Runs in linear time per `*`, because it only backtracks to the
    /// last star.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n, mut star) = (0, 0, None);
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(byte) if *byte == name[n] => (p, n) = (p + 1, n + 1),
                _ => {
                    let Some((star_p, star_n)) = star else { return false };
                    star = Some((star_p, star_n + 1));
                    (p, n) = (star_p + 1, star_n + 1);
                }
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '{' || c == '}';
        if text.is_empty() || text.contains(bad) {
            Err(InvalidPattern(text.to_owned()))
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(name)
    }

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, name) in
            [("*", ""), ("*", "a"), ("a*", "a"), ("a*c", "abbc"), ("*a*b", "xaab"), ("room-*-x", "room-1-x")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a", "ab"), ("a*c", "abcb"), ("room-*", "Room-1"), ("a", "")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_with_braces_or_white_space_is_refused() {
        for text in ["", "a b", "{a}", "a\u{0}"] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
    }
}
