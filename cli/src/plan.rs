//! `kubectl fanout plan`: what the operator would do if a FanoutCluster were applied, or what it is about to do with one
//! as it stands, by the operator's own code. Nothing is ever written: what would be stored is asked of the API server by
//! a dry run.

mod desired;
mod report;
#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use fanout_operator::{
    api_client,
    controller::{apply::preview::preview, survey::Survey, validate::SecretShape},
};
use kube::Client;
use serde_json::Value;

use self::{
    desired::{Apply, Desired},
    report::{ClusterReport, Report},
};
use crate::manifest;

/// Exit code with `--exit-code` if something would change, like that of `terraform plan -detailed-exitcode`.
const CHANGES: u8 = 2;

/// Arguments of `kubectl fanout plan`.
#[derive(Debug, clap::Args)]
pub(crate) struct PlanArgs {
    /// Name of a FanoutCluster, to show what the operator is about to do with it.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// File with FanoutClusters, or `-` for standard input, to show what the operator would do if it were applied.
    #[arg(short, long, value_name = "FILE", conflicts_with = "name")]
    file: Option<PathBuf>,
    /// Namespace. Defaults to the one in the file, then to that of the kubeconfig.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Output format: text for people, or JSON for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Exit with code 2 if something would change and with 0 if nothing would. Errors exit with 1.
    #[arg(long)]
    exit_code: bool,
    /// Simulate `kubectl apply --server-side` instead of a client-side `kubectl apply`.
    #[arg(long, requires = "file")]
    server_side: bool,
    /// Field manager of the server-side apply, as in `kubectl apply`.
    #[arg(long, default_value = "kubectl", value_name = "NAME", requires = "server_side")]
    field_manager: String,
    /// Take over fields of other managers in the server-side apply, as in `kubectl apply`.
    #[arg(long, requires = "server_side")]
    force_conflicts: bool,
}

/// Output format of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

pub(crate) async fn run(args: PlanArgs) -> anyhow::Result<ExitCode> {
    let client = api_client::connect().await.context("failed to find a Kubernetes cluster")?;
    let report = plan(&client, &args).await?;
    match args.output {
        Output::Text => print!("{}", text::text(&report)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(if args.exit_code && report.changes { ExitCode::from(CHANGES) } else { ExitCode::SUCCESS })
}

/// The plan of each FanoutCluster that is asked for.
async fn plan(client: &Client, args: &PlanArgs) -> anyhow::Result<Report> {
    let mut clusters = Vec::new();
    match (&args.file, &args.name) {
        (Some(file), _) => {
            let (manifests, secrets) = read(file)?;
            let apply = Apply::of(args.server_side, &args.field_manager, args.force_conflicts);
            for manifest in manifests {
                let namespace = namespace_of(client, &manifest, args.namespace.as_deref())?;
                let desired = desired::applied(client, &namespace, &manifest, &apply).await?;
                clusters.push(look(client, desired, &shapes(&secrets, &namespace)).await?);
            }
        }
        (None, Some(name)) => {
            let namespace = args.namespace.as_deref().unwrap_or_else(|| client.default_namespace());
            let desired = desired::stored(client, namespace, name).await?;
            clusters.push(look(client, desired, &BTreeMap::new()).await?);
        }
        (None, None) => bail!("specify the name of a FanoutCluster, or a file with -f"),
    }
    Ok(Report::of(clusters))
}

async fn look(
    client: &Client,
    desired: Desired,
    secrets: &BTreeMap<String, SecretShape>,
) -> anyhow::Result<ClusterReport> {
    let survey = Survey::take(client, &desired.after, secrets).await?;
    let preview = preview(&desired.after, &survey);
    Ok(ClusterReport::of(&desired, &survey, &preview))
}

fn read(file: &Path) -> anyhow::Result<(Vec<Value>, Vec<Value>)> {
    if file != Path::new("-") {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
        return Ok(manifest::objects(file, &text)?);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("failed to read standard input")?;
    Ok(manifest::objects(Path::new("standard input"), &text)?)
}

/// The namespace of a manifest, which the one of the command line must not contradict.
fn namespace_of(client: &Client, manifest: &Value, asked: Option<&str>) -> anyhow::Result<String> {
    let own = manifest["metadata"]["namespace"].as_str();
    if let (Some(own), Some(asked)) = (own, asked) {
        ensure!(
            own == asked,
            "the namespace in the file is {own}, but --namespace is {asked}: leave one of them out"
        );
    }
    Ok(own.or(asked).unwrap_or_else(|| client.default_namespace()).to_owned())
}

/// The Secrets of a file that would be there once it is applied.
fn shapes(secrets: &[Value], namespace: &str) -> BTreeMap<String, SecretShape> {
    let here = |secret: &&Value| secret["metadata"]["namespace"].as_str().is_none_or(|own| own == namespace);
    let shape = |secret: &Value| {
        let values = ["data", "stringData"].into_iter().filter_map(|part| secret[part].as_object()).flatten();
        let sizes = values.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().len()));
        let shape = SecretShape { sizes: sizes.collect(), api_key: None };
        Some((secret["metadata"]["name"].as_str()?.to_owned(), shape))
    };
    secrets.iter().filter(here).filter_map(shape).collect()
}
