//! A plan for people.

use std::fmt::Write;

use super::report::{
    Child, ChildChange, Class, ClusterReport, Field, Leaving, NodeStep, Nodes, Note, ObjectChange, Redis,
    Report, Revision, State,
};

/// Nodes that are named one by one.
const MAX_NAMED: usize = 10;

/// The plans of one call.
pub(crate) fn text(report: &Report) -> String {
    let clusters: Vec<_> = report.clusters.iter().map(cluster).collect();
    clusters.join("\n")
}

fn cluster(cluster: &ClusterReport) -> String {
    let ClusterReport {
        namespace,
        name,
        object,
        changes,
        state,
        fields,
        revision,
        nodes,
        redis,
        children,
        steps,
        problems,
        warnings,
        unknown,
    } = cluster;
    let mut lines = vec![format!("FanoutCluster {namespace}/{name}{}", headline(*object))];
    lines.extend(fields.iter().map(field));
    lines.extend(state_line(*state));
    if *changes {
        lines.extend(
            revision.as_ref().zip(nodes.as_ref()).into_iter().flat_map(|(revision, nodes)| {
                std::iter::once(revision_line(revision)).chain(node_lines(nodes))
            }),
        );
        lines.extend(redis.and_then(redis_line));
        lines.extend(section("Objects:", children.iter().map(child)));
        lines.extend(section("First steps:", steps.iter().map(step)));
    } else if *state == State::Planned {
        lines.push(no_changes(problems, unknown).to_owned());
    }
    lines.extend(section("Problems:", problems.iter().map(note)));
    lines.extend(section("Warnings:", warnings.iter().map(note)));
    lines.extend(section("Not known:", unknown.iter().cloned()));
    lines.join("\n") + "\n"
}

fn headline(object: ObjectChange) -> &'static str {
    match object {
        ObjectChange::Created => " would be created",
        ObjectChange::Changed => " would change",
        ObjectChange::Unchanged => "",
    }
}

fn no_changes(problems: &[Note], unknown: &[String]) -> &'static str {
    if problems.is_empty() && unknown.is_empty() {
        "No changes: the cluster is as this says."
    } else {
        "No changes, as far as can be seen."
    }
}

fn state_line(state: State) -> Option<String> {
    let line = match state {
        State::Planned => return None,
        State::Paused => "Paused: the operator changes nothing while spec.paused is true.",
        State::Refused => "It cannot work: the operator changes nothing until the problems below are mended.",
        State::Deleting => "It is being deleted: Kubernetes removes what belongs to it.",
    };
    Some(line.to_owned())
}

fn field(field: &Field) -> String {
    let Field { path, class } = field;
    let (class, effect) = match class {
        Class::Roll => ("roll", "new nodes replace the old ones"),
        Class::InPlace => ("in place", "running pods are patched, clients stay"),
        Class::Hot => ("hot", "running nodes take it over within 2 minutes, clients stay"),
        Class::Operator => ("operator", "read by the operator, no node is replaced for it"),
        Class::None => ("none", "no effect"),
    };
    format!("  {class:<9} {path}: {effect}")
}

fn revision_line(revision: &Revision) -> String {
    match revision {
        Revision { name: Some(name), new: true } => format!("Revision: {name}, a new one"),
        Revision { name: Some(name), new: false } => format!("Revision: {name}, as it exists"),
        Revision { name: None, .. } => "Revision: a new one".to_owned(),
    }
}

fn node_lines(nodes: &Nodes) -> Vec<String> {
    let mut lines = vec![format!("Nodes: {}", amounts(nodes))];
    let Nodes { leaving, pace, .. } = nodes;
    let mut more = |line: String| lines.push(format!("  {line}"));
    if nodes.replaced > 0 || nodes.removed > 0 {
        more(format!(
            "{} at a time (maxSurge {}, maxUnavailable {}); at most {} exist and at least {} serve meanwhile",
            pace.max_draining, pace.max_surge, pace.max_unavailable, nodes.most, nodes.least_serving
        ));
        more(format!("order: {}", order(leaving)));
        more(format!(
            "each closes its connections within {} (drain.timeoutSeconds), and is killed after {}",
            time(pace.drain_timeout_seconds.into()),
            time(pace.termination_grace_period_seconds)
        ));
        if let Some(seconds) = nodes.seconds_at_most {
            let waits = if pace.min_ready_seconds > 0 { " and waits (minReadySeconds)" } else { "" };
            more(format!(
                "all drains{waits} take at most {}, besides the time in which new nodes become ready",
                time(seconds)
            ));
        }
    }
    if nodes.outdated > 0 && pace.replace == "OnDelete" {
        more(format!(
            "{} stay at an older revision until somebody deletes them (updateStrategy.type OnDelete)",
            count(nodes.outdated, "node")
        ));
    }
    if nodes.stuck > 0 {
        let verb = if nodes.stuck == 1 { "is" } else { "are" };
        more(format!("{} {verb} not ready and {verb} taken to stay so", count(nodes.stuck, "node")));
    }
    if !nodes.finishes && pace.replace != "OnDelete" {
        more(format!(
            "it does not end with {} serving at this revision",
            count(nodes.wanted as usize, "node")
        ));
    }
    if nodes.now == 0 {
        return lines;
    }
    lines.push(if leaving.is_empty() {
        "Clients: all stay connected".to_owned()
    } else {
        "Clients: those of a node that leaves are asked to connect again, and find another; all others stay"
            .to_owned()
    });
    lines
}

fn amounts(nodes: &Nodes) -> String {
    let Nodes { replaced, added, removed, kept, .. } = nodes;
    let parts = [(replaced, "replaced"), (added, "added"), (removed, "removed"), (kept, "kept")];
    let parts: Vec<_> = parts
        .into_iter()
        .filter(|(number, _)| **number > 0)
        .map(|(number, verb)| format!("{number} {verb}"))
        .collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn order(leaving: &[Leaving]) -> String {
    let named = leaving.iter().take(MAX_NAMED).map(|Leaving { name, connections }| match connections {
        Some(connections) => format!("{name} ({})", count(*connections as usize, "connection")),
        None => format!("{name} (connections not known)"),
    });
    let mut named: Vec<_> = named.collect();
    if leaving.len() > MAX_NAMED {
        named.push(format!("and {} more", leaving.len() - MAX_NAMED));
    }
    named.join(", ")
}

fn redis_line(redis: Redis) -> Option<String> {
    let line = match redis {
        Redis::None => return None,
        Redis::Created => "Redis: its pod is made",
        Redis::Kept => "Redis: its pod stays",
        Redis::Replaced => {
            "Redis: its pod is replaced; clients stay connected, and nothing is published until it is back"
        }
        Redis::Unknown => "Redis: not known",
    };
    Some(line.to_owned())
}

fn child(child: &Child) -> String {
    let Child { kind, name, change, fields } = child;
    let change = match change {
        ChildChange::Create => "create",
        ChildChange::Update => "update",
        ChildChange::Delete => "delete",
        ChildChange::Blocked => "blocked",
        ChildChange::Unknown => "unknown",
    };
    let name = name.as_deref().unwrap_or("of the new revision");
    let fields = if fields.is_empty() { String::new() } else { format!(": {}", fields.join(", ")) };
    format!("{change:<7} {kind} {name}{fields}")
}

fn step(step: &NodeStep) -> String {
    let NodeStep { step, object, nodes, reason } = step;
    let mut line = format!("{step} {object}");
    if let Some(nodes) = nodes {
        write!(line, ", to {}", count(*nodes as usize, "node")).expect("a String takes any text");
    }
    format!("{line} ({reason})")
}

fn note(note: &Note) -> String {
    let Note { reason, object, message } = note;
    format!("{reason} ({object}): {message}")
}

fn section(title: &str, lines: impl Iterator<Item = String>) -> Vec<String> {
    let lines: Vec<_> = lines.map(|line| format!("  {line}")).collect();
    if lines.is_empty() { lines } else { [vec![title.to_owned()], lines].concat() }
}

fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// A time, from an hour on rounded up to minutes.
fn time(seconds: u64) -> String {
    let seconds = if seconds < 3_600 { seconds } else { seconds.next_multiple_of(60) };
    let units = [(seconds / 3_600, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    let parts: Vec<_> = units
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number} {unit}"))
        .collect();
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}
