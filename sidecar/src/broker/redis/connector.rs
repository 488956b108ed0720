//! Connections to Redis: each one resolves the address, reads the credential files, authenticates, and makes sure that
//! the server is a primary.

use std::{io, net::SocketAddr, path::Path, path::PathBuf, sync::Arc, time::Duration};

use bytes::BytesMut;
use sidecar_config::RedisBroker;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    sync::Notify,
    time::{sleep, timeout},
};

use super::{
    interests::encode,
    resp::{self, Broken, Item, Role},
    role::{self, Answer, Ask, ServerRole},
    tls::{self, TlsError},
};

/// From the look-up to the last answer of the handshake; a Redis that takes longer serves nobody.
const CONNECT: Duration = Duration::from_secs(5);

/// The shortest wait before the next try: who is told at once that Redis is back could else be told in a circle.
const LEAST_PAUSE: Duration = Duration::from_millis(50);

/// A connection's bytes, plain or by TLS.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Makes connections. Clones are for the connections of one node.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    settings: RedisBroker,
    /// Shown by `CLIENT LIST`.
    client_name: String,
    /// One of its connections serves again.
    back: Arc<Notify>,
}

/// Why there is no connection, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("failed to resolve {address} (broker.redis.address): {source}")]
    Resolve { address: String, source: io::Error },
    #[error("failed to connect to Redis at {address} (broker.redis.address): {source}")]
    Connect { address: String, source: io::Error },
    #[error("Redis at {0} (broker.redis.address) did not answer in {seconds} s", seconds = CONNECT.as_secs())]
    Timeout(String),
    #[error("failed to read {path} (broker.redis.{field}): {source}", path = path.display())]
    File { field: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("Redis refused the user or password: {text}; check that {files} hold what Redis knows")]
    Credentials { text: String, files: String },
    #[error("Redis asks for a password: {0}; set broker.redis.passwordFile")]
    NoCredentials(String),
    #[error("Redis refused {command}: {text}")]
    Refused { command: &'static str, text: String },
    #[error("the connection to Redis was lost while it was made: {source}; {hint}")]
    Lost { source: io::Error, hint: &'static str },
    #[error("what answers at {address} is no Redis: {source}; {hint}")]
    Broken { address: String, source: Broken, hint: &'static str },
    #[error(
        "Redis at {address} (broker.redis.address) is a replica{of}: messages published there reach nobody; let the \
         address lead to the primary"
    )]
    Replica { address: String, of: String },
    #[error("what answers at {0} (broker.redis.address) is a Sentinel, give the address of a Redis server")]
    Sentinel(String),
}

/// What a command of the handshake is for.
#[derive(Clone, Copy)]
enum Step {
    Auth,
    Name,
    Select,
    Ping,
}

/// A connection to a server that serves.
pub(super) struct Connected {
    pub(super) transport: Box<dyn Transport>,
    pub(super) server: SocketAddr,
}

/// A connection that is being made.
struct Making<'a> {
    connector: &'a Connector,
    transport: Box<dyn Transport>,
    input: BytesMut,
}

impl Connector {
    pub(super) fn new(settings: RedisBroker, client_name: &str) -> Self {
        // Redis takes no white space in it.
        Self { settings, client_name: client_name.replace(char::is_whitespace, "-"), back: Arc::default() }
    }

    /// A connection serves: others that wait for their next try need not wait any longer.
    pub(super) fn serves(&self) {
        self.back.notify_waiters();
    }

    /// Waits before the next try: this long, or until another connection of the node serves.
    pub(super) async fn pause(self, time: Duration) {
        // From here on nothing is missed.
        let back = self.back.notified();
        sleep(time.min(LEAST_PAUSE)).await;
        let _ = timeout(time.saturating_sub(LEAST_PAUSE), back).await;
    }

    /// Returns a connection to a primary that is authenticated and answers; `side` is shown by `CLIENT LIST`.
    pub(super) async fn connect(self, side: &str) -> Result<Connected, ConnectError> {
        let connect = async {
            let Connected { transport, server } = self.transport().await?;
            let mut making = Making { connector: &self, transport, input: BytesMut::new() };
            making.shake_hands(side).await?;
            self.judge(role::find(&mut making, &self.settings.channel_prefix).await?)?;
            Ok(Connected { transport: making.transport, server })
        };
        timeout(CONNECT, connect)
            .await
            .unwrap_or_else(|_| Err(ConnectError::Timeout(self.settings.address.clone())))
    }

    /// Returns what the address leads to now.
    pub(super) async fn look_up(self) -> io::Result<Vec<SocketAddr>> {
        lookup_host(&self.settings.address).await.map(Iterator::collect)
    }

    /// The configured address.
    pub(super) fn address(&self) -> &str {
        &self.settings.address
    }

    async fn transport(&self) -> Result<Connected, ConnectError> {
        let stream = self.tcp().await?;
        let server = stream.peer_addr().map_err(|source| self.lost(source))?;
        let transport: Box<dyn Transport> = match &self.settings.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls::connect(stream, tls, self.host()).await?),
        };
        Ok(Connected { transport, server })
    }

    async fn tcp(&self) -> Result<TcpStream, ConnectError> {
        let address = || self.settings.address.clone();
        let found = lookup_host(&self.settings.address).await;
        let found: Vec<_> =
            found.map_err(|source| ConnectError::Resolve { address: address(), source })?.collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        // One that swallows packets leaves time for the others.
        let each = CONNECT / (u32::try_from(found.len()).unwrap_or(u32::MAX).saturating_add(1));
        for candidate in found {
            match timeout(each, TcpStream::connect(candidate)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true).map_err(|source| self.lost(source))?;
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_elapsed) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(ConnectError::Connect { address: address(), source: last })
    }

    fn host(&self) -> &str {
        let host = self.settings.address.rsplit_once(':').map_or(&*self.settings.address, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Refuses a server that publications may not be sent to.
    pub(super) fn judge(&self, role: ServerRole) -> Result<(), ConnectError> {
        let address = self.settings.address.clone();
        match role {
            ServerRole::Primary => Ok(()),
            ServerRole::Replica(of) if of.is_empty() => Err(ConnectError::Replica { address, of }),
            ServerRole::Replica(of) => Err(ConnectError::Replica { address, of: format!(" of {of}") }),
            ServerRole::Sentinel => Err(ConnectError::Sentinel(address)),
        }
    }

    /// What stands before every name of this node's cluster in Redis.
    pub(super) fn prefix(&self) -> &str {
        &self.settings.channel_prefix
    }

    fn handshake(&self, side: &str) -> Result<(BytesMut, Vec<Step>), ConnectError> {
        let (mut out, mut steps) = (BytesMut::new(), Vec::new());
        let mut say = |step: Step, command: &[u8], arguments: &[&str]| {
            encode(&mut out, command, arguments);
            steps.push(step);
        };
        let (user, password) = self.credentials()?;
        match (&user, &password) {
            (Some(user), password) => {
                say(Step::Auth, b"AUTH", &[user, password.as_deref().unwrap_or_default()])
            }
            (None, Some(password)) => say(Step::Auth, b"AUTH", &[password]),
            (None, None) => {}
        }
        say(Step::Name, b"CLIENT", &["SETNAME", &format!("fanout-{side}:{}", self.client_name)]);
        if self.settings.database != 0 {
            say(Step::Select, b"SELECT", &[&self.settings.database.to_string()]);
        }
        say(Step::Ping, b"PING", &[]);
        Ok((out, steps))
    }

    fn refused(&self, step: Step, text: String) -> Result<(), ConnectError> {
        let is_about_auth =
            ["WRONGPASS", "ERR invalid password", "ERR AUTH"].iter().any(|start| text.starts_with(start));
        match step {
            // Said before any command was read.
            _ if text.starts_with("DENIED") || text.contains("max number of clients") => {
                Err(ConnectError::Refused { command: "the connection", text })
            }
            Step::Auth if is_about_auth => {
                Err(ConnectError::Credentials { text, files: self.credential_files() })
            }
            Step::Auth => Err(ConnectError::Refused { command: "AUTH", text }),
            Step::Name => Ok(()), // A nicety, which an ACL may not grant.
            Step::Select | Step::Ping if text.starts_with("NOAUTH") => Err(ConnectError::NoCredentials(text)),
            Step::Select => Err(ConnectError::Refused { command: "SELECT (broker.redis.database)", text }),
            // An ACL without PING answers all the same.
            Step::Ping if text.starts_with("NOPERM") => Ok(()),
            Step::Ping => Err(ConnectError::Refused { command: "PING", text }),
        }
    }

    fn lost(&self, source: io::Error) -> ConnectError {
        ConnectError::Lost { source, hint: self.hint() }
    }

    fn broken(&self, source: Broken) -> ConnectError {
        ConnectError::Broken { address: self.settings.address.clone(), source, hint: self.hint() }
    }

    /// What is behind most connections that are lost at once.
    fn hint(&self) -> &'static str {
        match self.settings.tls {
            Some(_) => {
                "check that Redis trusts broker.redis.tls.certFile, if it asks for a client certificate"
            }
            None => "check broker.redis.address, and set broker.redis.tls if it is a TLS port",
        }
    }

    /// User and password, read now, so that a rotated Secret is followed.
    fn credentials(&self) -> Result<(Option<String>, Option<String>), ConnectError> {
        let RedisBroker { username_file, password_file, .. } = &self.settings;
        let read = |field, path: &Option<PathBuf>| path.as_deref().map(|path| read(field, path)).transpose();
        Ok((read("usernameFile", username_file)?, read("passwordFile", password_file)?))
    }

    fn credential_files(&self) -> String {
        let RedisBroker { username_file, password_file, .. } = &self.settings;
        let named = [("usernameFile", username_file), ("passwordFile", password_file)];
        let name = |(field, path): (&str, &Option<PathBuf>)| {
            path.as_ref().map(|path| format!("{} (broker.redis.{field})", path.display()))
        };
        named.into_iter().filter_map(name).collect::<Vec<_>>().join(" and ")
    }
}

// === impl Making ===

impl Making<'_> {
    /// All commands in one write, then their answers.
    async fn shake_hands(&mut self, side: &str) -> Result<(), ConnectError> {
        let (out, steps) = self.connector.handshake(side)?;
        self.write(&out).await?;
        for step in steps {
            if let (Item::Error(text), bytes) = self.next().await? {
                self.connector.refused(step, String::from_utf8_lossy(&bytes[text]).into_owned())?;
            }
        }
        Ok(())
    }

    async fn write(&mut self, out: &[u8]) -> Result<(), ConnectError> {
        let lost = |source| self.connector.lost(source);
        self.transport.write_all(out).await.map_err(lost)?;
        self.transport.flush().await.map_err(lost)
    }

    /// The next answer, and the bytes that its ranges are places in.
    async fn next(&mut self) -> Result<(Item, BytesMut), ConnectError> {
        loop {
            let parsed = resp::parse(&self.input, 0).map_err(|source| self.connector.broken(source))?;
            if let Some((item, end)) = parsed {
                return Ok((item, self.input.split_to(end)));
            }
            let read = self.transport.read_buf(&mut self.input).await;
            if read.map_err(|source| self.connector.lost(source))? == 0 {
                return Err(self.connector.lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl Ask for Making<'_> {
    type Error = ConnectError;

    async fn ask(&mut self, command: &[&str]) -> Result<Answer, ConnectError> {
        let mut out = BytesMut::new();
        let (name, arguments) = command.split_first().unwrap_or((&"PING", &[]));
        encode(&mut out, name.as_bytes(), arguments);
        self.write(&out).await?;
        let (item, bytes) = self.next().await?;
        let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&bytes[range]).into_owned();
        Ok(match item {
            Item::Role(Role::Primary) => Answer::Role(ServerRole::Primary),
            Item::Role(Role::Replica { host, port }) => {
                Answer::Role(ServerRole::Replica(format!("{}:{}", text(host), text(port))))
            }
            Item::Role(Role::Sentinel) => Answer::Role(ServerRole::Sentinel),
            Item::Bulk(range) | Item::Status(range) => Answer::Text(text(range)),
            Item::Error(range) => Answer::Refused(text(range)),
            Item::Message { .. } | Item::Subscribed(_) | Item::Unsubscribed(_) | Item::Pong | Item::Other => {
                Answer::Other
            }
        })
    }
}

/// A file's text without one trailing line break, which editors and `echo` put there.
fn read(field: &'static str, path: &Path) -> Result<String, ConnectError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConnectError::File {
        field,
        path: path.to_owned(),
        source,
    })?;
    Ok(text.strip_suffix('\n').map_or(&*text, |text| text.strip_suffix('\r').unwrap_or(text)).to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_serves_ends_the_pause_of_the_others_but_not_at_once() {
        let settings = serde_yaml::from_str("{address: '127.0.0.1:6379', channelPrefix: 'a'}").unwrap();
        let connector = Connector::new(settings, "node");
        let begin = Instant::now();
        let waiting = tokio::spawn(connector.clone().pause(Duration::from_secs(5)));
        sleep(Duration::from_millis(1)).await;
        connector.serves();
        waiting.await.unwrap();
        assert_eq!(begin.elapsed(), LEAST_PAUSE);
        connector.clone().pause(Duration::from_secs(5)).await;
        assert_eq!(
            begin.elapsed(),
            LEAST_PAUSE + Duration::from_secs(5),
            "what was before it does not count"
        );
    }
}
