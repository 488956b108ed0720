//! docs/observability.md names every metric that a node shows, and none that it does not.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::json;

use crate::{
    binary::Program,
    support::{Addresses, KEY, Setup, http, soon},
};

/// The heading of the table.
const HEADING: &str = "## Every metric\n";

/// Shown once there is something to count, which this test does not provoke.
const LATER: [&str; 1] = ["fanout_bridge_gaps_total"];

/// Names as Prometheus stores them, and what each tells.
fn shown(page: &str) -> BTreeMap<String, String> {
    let described = |line: &str, word: &str| {
        let (name, rest) = line.strip_prefix(word)?.split_once(' ')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    let kinds: BTreeMap<_, _> = page.lines().filter_map(|line| described(line, "# TYPE ")).collect();
    let suffix = |name: &str| match kinds.get(name).map(String::as_str) {
        Some("counter") => "_total",
        Some("info") => "_info",
        _ => "",
    };
    let helps = page.lines().filter_map(|line| described(line, "# HELP "));
    helps.map(|(name, help)| (format!("{name}{}", suffix(&name)), help)).collect()
}

/// The table of these metrics, as it stands in the document.
fn table(metrics: &BTreeMap<String, String>) -> String {
    let row = |(name, help): (&String, &String)| {
        format!("| `{name}` | {} |\n", help.trim_end_matches('.').replace('|', "\\|"))
    };
    format!("| metric | tells |\n|---|---|\n{}", metrics.iter().map(row).collect::<String>())
}

/// Names in backquotes that are written out.
fn named(document: &str) -> impl Iterator<Item = &str> {
    let quoted = document.split('`').skip(1).step_by(2).map(|text| text.split('{').next().unwrap_or(text));
    quoted.filter(|text| {
        ["fanout_", "process_"].iter().any(|prefix| text.starts_with(prefix))
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_names_every_metric_and_no_other() {
    let program = Program::start(&Setup::open()).await;
    // So that each label has a value.
    let Addresses { client, api, .. } = program.addresses;
    soon(http().get(format!("http://{client}/nowhere")).send()).await.unwrap();
    let call = || http().post(format!("http://{api}/api/info")).json(&json!({}));
    soon(call().header("x-api-key", KEY).send()).await.unwrap();
    soon(call().send()).await.unwrap();
    let request = http().get(format!("http://{}/metrics", program.addresses.admin)).send();
    let page = soon(soon(request).await.unwrap().text()).await.unwrap();
    let metrics = shown(&page);
    assert!(metrics.len() > 40, "{page}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability.md");
    let document = fs::read_to_string(path).unwrap();
    let expected = table(&metrics);
    let section = document.split_once(HEADING).map_or("", |(_, rest)| rest.split("\n## ").next().unwrap());
    assert!(
        section.contains(&expected),
        "in docs/observability.md stands below `{}`:\n\n{expected}",
        HEADING.trim()
    );
    for name in LATER {
        assert!(named(&document).any(|named| named == name), "docs/observability.md does not name `{name}`");
    }
    for name in named(&document) {
        let known = metrics.contains_key(name) || LATER.contains(&name);
        assert!(known, "docs/observability.md names `{name}`, which no node shows");
    }
}
