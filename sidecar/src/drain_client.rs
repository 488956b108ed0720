//! The preStop hook: asks the node on this machine to drain and waits until it has.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Drains the node whose admin port is at `admin`. A node that ends while it is waited for has drained.
pub(crate) fn drain(admin: &str) -> Result<()> {
    let admin = admin.trim_start_matches("http://").trim_end_matches('/');
    let (status, body) = call(admin, "POST", "/drain").with_context(|| {
        format!("failed to reach the admin port at {admin}: does the node run, and is this its machine?")
    })?;
    if status != 202 {
        bail!("the admin port at {admin} answered {status}: {}", body.trim());
    }
    while !has_drained(admin) {}
    Ok(())
}

fn has_drained(admin: &str) -> bool {
    let state = call(admin, "GET", "/drain/wait").map(|(_, body)| serde_json::from_str::<Value>(&body));
    match state {
        Ok(Ok(state)) => state["drained"] == true,
        Ok(Err(_)) | Err(_) => true,
    }
}

/// One request over a connection of its own: the status and the body. The node's drain has a deadline, so that
/// nothing here needs one.
fn call(admin: &str, method: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(admin)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no HTTP answer")?;
    while !line.trim().is_empty() {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let mut body = String::new();
    reader.read_to_string(&mut body)?;
    Ok((status, body))
}
