//! Settings documents, and the names and patterns in them.

use std::fmt::Debug;

use fanout_sidecar::domain::ChannelName;
use serde::Serialize;
use sidecar_config::{BootSettings, Document, LiveSettings, Pattern, parse};

/// A good document, written down again, is the same document; a bad one says where it is bad.
pub(crate) fn settings(data: &[u8]) {
    let Some((kind, text)) = crate::parameter(data) else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    if kind % 2 == 0 { check::<BootSettings>(text) } else { check::<LiveSettings>(text) }
}

fn check<D: Document + Serialize + PartialEq + Debug>(text: &str) {
    match parse::<D>(text) {
        Ok(document) => {
            let written = serde_json::to_string(&document).expect("settings are JSON");
            assert_eq!(parse::<D>(&written).as_ref(), Ok(&document), "{written}");
        }
        Err(mistakes) => assert!(!mistakes.0.is_empty() && !mistakes.to_string().is_empty()),
    }
}

/// A name is its namespace and the rest; a pattern matches as by trying every way.
pub(crate) fn channel_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (text, pattern) = text.split_once('\n').unwrap_or((text, "*"));
    let Ok(name) = text.parse::<ChannelName>() else { return };
    assert_eq!(name.as_str(), text);
    assert!(
        text.len() <= ChannelName::MAX_BYTES && !text.contains(|c: char| c.is_control() || c.is_whitespace())
    );
    let prefixed = format!("{}:{}", name.namespace(), name.local());
    assert!(prefixed == text || format!("default:{text}") == prefixed);
    if let Ok(pattern) = pattern.parse::<Pattern>() {
        let written = pattern.to_string();
        // Trying every way takes time by the product of both.
        if written.len() < 64 && name.local().len() < 64 {
            assert_eq!(pattern.matches(name.local()), naive(written.as_bytes(), name.local().as_bytes()));
        }
    }
}

/// Row by row: whether each beginning of the name fits the pattern up to here.
fn naive(pattern: &[u8], name: &[u8]) -> bool {
    let mut fits = vec![false; name.len() + 1];
    fits[0] = true;
    for byte in pattern {
        let mut next = vec![false; name.len() + 1];
        for at in 0..=name.len() {
            next[at] = match byte {
                b'*' => fits[at] || (at > 0 && next[at - 1]),
                byte => at > 0 && fits[at - 1] && name[at - 1] == *byte,
            };
        }
        fits = next;
    }
    fits[name.len()]
}
