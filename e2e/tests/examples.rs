//! Every manifest in `examples/`, applied as it is.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use fanout_e2e::{Fanout, exchange, operator, warm_up, with_operator};
use fanout_lab::Namespace;
use serde_json::Value;

#[tokio::test]
async fn the_quickstart_becomes_ready_and_delivers_across_its_nodes() {
    with_operator("quickstart", async |namespace| {
        let file = operator::root().join("examples/quickstart.yaml");
        let clusters = apply(namespace, &file).await?;
        ensure!(clusters.len() == 1, "the quickstart holds {} clusters", clusters.len());
        let (name, replicas) = &clusters[0];
        ensure!(*replicas == 3, "the quickstart has {replicas} replicas");
        let fanout = Fanout::at(namespace, name);
        let nodes = fanout.ready(3).await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        exchange(&mut clients).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn every_example_becomes_ready() {
    with_operator("examples", async |namespace| {
        let files = files()?;
        ensure!(!files.is_empty(), "there are no examples");
        for file in files {
            let own = namespace.cluster().namespace("example", true).await?;
            let name = file.display().to_string();
            if let Err(error) = ready(&own, &file).await {
                return Err(error.context(format!("{name}\n{}", own.report().await)));
            }
            eprintln!("{name} is ready");
        }
        Ok(())
    })
    .await;
}

async fn ready(namespace: &Namespace, file: &PathBuf) -> Result<()> {
    for (name, replicas) in apply(namespace, file).await? {
        Fanout::at(namespace, &name).ready(replicas).await?;
    }
    Ok(())
}

fn files() -> Result<Vec<PathBuf>> {
    let directory = operator::root().join("examples");
    let mut files = Vec::new();
    for entry in
        fs::read_dir(&directory).with_context(|| format!("failed to read {}", directory.display()))?
    {
        files.push(entry?.path());
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    Ok(files)
}

/// Applies a file; gives name and replicas of each FanoutCluster in it.
async fn apply(namespace: &Namespace, file: &PathBuf) -> Result<Vec<(String, usize)>> {
    let text = fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
    namespace.apply(&text).await?;
    // Tools that compare a file with what is there find no difference either.
    let again = namespace.apply(&text).await?;
    let differs =
        again.lines().find(|line| line.starts_with("fanoutcluster") && !line.ends_with("unchanged"));
    ensure!(differs.is_none(), "applied again: {differs:?}");
    let list = namespace.get(&["foc"]).await?;
    let clusters = list["items"].as_array().into_iter().flatten().map(|object: &Value| {
        let name = object["metadata"]["name"].as_str().context("a cluster without a name")?;
        let replicas = object["spec"]["replicas"].as_u64().context("a cluster without replicas")?;
        Ok((name.to_owned(), usize::try_from(replicas)?))
    });
    clusters.collect()
}
