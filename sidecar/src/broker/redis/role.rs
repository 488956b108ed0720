//! Finds out whether a server is a primary, by the first command that the ACL permits. A `PUBLISH` on a replica
//! reaches nobody and says so by no error, so that a server's role has to be asked for.

use std::future::Future;

/// A connection that answers one command at a time.
pub(super) trait Ask {
    /// Why there is no answer.
    type Error;

    /// Sends a command and returns its answer.
    fn ask(&mut self, command: &[&str]) -> impl Future<Output = Result<Answer, Self::Error>> + Send;
}

/// An answer, as far as a role can be read from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Of `ROLE`.
    Role(ServerRole),
    /// A text.
    Text(String),
    /// An error.
    Refused(String),
    /// Anything else.
    Other,
}

/// The role of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerRole {
    /// It takes writes; so far as the ACL lets us know.
    Primary,
    /// It copies another server: `host:port`, empty where that is not known.
    Replica(String),
    /// It is no data server.
    Sentinel,
}

/// Returns the server's role. `prefix` names the key that is written where the ACL permits neither `ROLE` nor `INFO`.
/// A refusal is no sign of a replica.
pub(super) async fn find<A: Ask>(server: &mut A, prefix: &str) -> Result<ServerRole, A::Error> {
    if let Answer::Role(role) = server.ask(&["ROLE"]).await? {
        return Ok(role);
    }
    if let Answer::Text(info) = server.ask(&["INFO", "replication"]).await?
        && let Some(role) = role_of(&info)
    {
        return Ok(role);
    }
    let key = format!("{{{prefix}:fanout}}:role");
    match server.ask(&["SET", &key, "1", "PX", "1000"]).await? {
        Answer::Refused(text) if text.starts_with("READONLY") => Ok(ServerRole::Replica(String::new())),
        Answer::Refused(_) | Answer::Role(_) | Answer::Text(_) | Answer::Other => Ok(ServerRole::Primary),
    }
}

/// The role in an answer to `INFO replication`.
fn role_of(info: &str) -> Option<ServerRole> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    match field("role")? {
        "slave" => {
            let of = field("master_host").zip(field("master_port"));
            Some(ServerRole::Replica(of.map(|(host, port)| format!("{host}:{port}")).unwrap_or_default()))
        }
        _ => Some(ServerRole::Primary),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Answers each command in turn, and refuses what is beyond.
    struct Script(Vec<Answer>, Vec<String>);

    impl Ask for Script {
        type Error = Infallible;

        async fn ask(&mut self, command: &[&str]) -> Result<Answer, Infallible> {
            self.1.push(command.join(" "));
            Ok(if self.0.is_empty() { refused("NOPERM") } else { self.0.remove(0) })
        }
    }

    fn refused(text: &str) -> Answer {
        Answer::Refused(text.to_owned())
    }

    async fn role(answers: Vec<Answer>) -> (ServerRole, usize) {
        let mut script = Script(answers, Vec::new());
        let Ok(role) = find(&mut script, "p").await;
        (role, script.1.len())
    }

    #[tokio::test]
    async fn the_first_permitted_command_tells_the_role() {
        let replica = ServerRole::Replica("a:1".to_owned());
        let noperm = || refused("NOPERM no");
        assert_eq!(role(vec![Answer::Role(replica.clone())]).await, (replica.clone(), 1));
        let info =
            Answer::Text("# Replication\r\nrole:slave\r\nmaster_host:a\r\nmaster_port:1\r\n".to_owned());
        assert_eq!(role(vec![noperm(), info]).await, (replica, 2));
        let written = refused("READONLY You can't write against a read only replica.");
        assert_eq!(role(vec![noperm(), noperm(), written]).await, (ServerRole::Replica(String::new()), 3));
    }

    #[tokio::test]
    async fn refusals_are_no_sign_of_a_replica() {
        assert_eq!(role(Vec::new()).await, (ServerRole::Primary, 3));
    }
}
