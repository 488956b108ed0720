//! Who may use whom: reads what each module names of the crate, so that a shortcut does not pass a review unseen.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Each module and the modules that it may name. `app` and the binary may name all.
const LAYERS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("protocol", &["domain"]),
    ("session", &["domain", "protocol"]),
    ("latency", &[]),
    ("shard", &["domain", "latency", "protocol", "session"]),
    ("auth", &["domain"]),
    ("http", &["auth", "domain", "protocol", "shard"]),
    ("hub", &["domain"]),
    ("broker", &["domain"]),
    ("work", &["broker", "domain", "hub", "shard"]),
    ("bridge", &["broker", "domain", "hub", "latency", "shard", "work"]),
    ("api", &["auth", "bridge", "broker", "domain", "shard", "work"]),
    ("drain", &["shard"]),
    ("config", &["auth"]),
    ("telemetry", &[]),
    ("profile", &[]),
    ("metrics", &["latency", "profile", "protocol", "shard"]),
    ("admin", &["bridge", "drain", "metrics", "profile", "protocol", "shard", "telemetry"]),
];

/// What pure modules may not name: sockets, runtimes, clocks.
const IMPURE: &[&str] =
    &["tokio", "mio", "socket2", "std::net", "std::fs", "std::thread", "Instant::now", "SystemTime"];
const PURE: &[&str] = &["domain", "protocol", "session"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The code of each module that is no test, without comments.
fn modules() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let mut modules = BTreeMap::<_, Vec<_>>::new();
    for path in files(&source()).into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "rs"))
    {
        let inside = path.strip_prefix(source()).unwrap();
        let name = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let is_test = inside.ends_with("tests.rs") || inside.iter().any(|part| part == "tests");
        if !is_test {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            let code =
                code.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
            modules.entry(name).or_default().push((path, code));
        }
    }
    modules
}

/// The modules named behind each `crate::`, in braces or not.
fn named(code: &str) -> BTreeSet<String> {
    code.split("crate::").skip(1).flat_map(first_segments).collect()
}

fn first_segments(behind: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = behind.strip_prefix('{') else { return vec![word(behind)] };
    let (mut depth, mut at_start, mut words) = (0, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            c if at_start && c.is_alphabetic() => {
                words.push(word(&group[at..]));
                at_start = false;
            }
            _ => {}
        }
    }
    words
}

#[test]
fn a_group_is_read_as_its_first_segments() {
    let code = "use crate::{\n a::{B, C},\n d, e::F,\n};\n x: crate::g::H";
    assert_eq!(named(code), ["a", "d", "e", "g"].map(str::to_owned).into());
}

#[test]
fn modules_name_only_what_lies_to_their_left() {
    let modules = modules();
    for (module, allowed) in LAYERS {
        for (path, code) in &modules[*module] {
            for name in named(code).into_iter().filter(|name| modules.contains_key(name)) {
                let fine = name == *module || allowed.contains(&name.as_str());
                assert!(fine, "{} names `{name}`: {module} may name {allowed:?}", path.display());
            }
        }
    }
}

#[test]
fn every_module_has_its_place() {
    let known: BTreeSet<_> = LAYERS.iter().map(|(module, _)| *module).collect();
    let free = ["allocator", "app", "args", "drain_client", "lib", "main", "protocol_doc"];
    for module in modules().keys() {
        assert!(
            known.contains(module.as_str()) || free.contains(&module.as_str()),
            "{module} is in no layer"
        );
    }
}

#[test]
fn what_decides_touches_no_socket_no_runtime_and_no_clock() {
    for (module, files) in modules().iter().filter(|(module, _)| PURE.contains(&module.as_str())) {
        for (path, code) in files {
            for word in IMPURE {
                assert!(!code.contains(word), "{} names `{word}`: {module} is pure", path.display());
            }
        }
    }
}
