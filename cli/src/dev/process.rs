//! One supervised process: started, probed, restarted when it dies, drained when it is asked to end.
//!
//! The cluster makes these and says what it wants of them; the board shows what they do.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    board::{Board, State, Status},
    printer::{Printer, Source},
    probe::Probe,
};

/// Time between two looks at a process: short, for somebody waits for it to be ready and then watches its counts.
const PROBE_EVERY: Duration = Duration::from_millis(150);
/// First pause before a process that died is started again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// A process that lived this long is not in a crash loop.
const LONG_LIFE: Duration = Duration::from_secs(30);
/// The sidecar's exit code for settings it refuses: to start it again would change nothing.
const BAD_SETTINGS: i32 = 64;

/// A program and how to tell that it works.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) source: Source,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) probe: Probe,
    /// Time it has to end after SIGTERM before it is killed.
    pub(crate) grace: Duration,
}

/// A process under supervision. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Process {
    wanted: watch::Sender<Wanted>,
    task: JoinHandle<()>,
}

/// What is wanted of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    run: bool,
    /// Grows with every wish for a fresh process.
    round: u32,
    /// The supervision ends once the process has.
    last: bool,
    /// Killed without waiting for clients.
    forced: bool,
}

/// Why a run of a process ended.
enum Ended {
    /// Because something else was wanted.
    Asked,
    /// By itself, with what a person should read and whether another start can help.
    Died { reason: String, again: bool },
}

struct Supervisor {
    program: Program,
    wanted: watch::Receiver<Wanted>,
    board: Board,
    printer: Printer,
}

// === impl Process ===

impl Process {
    /// Starts `program` and keeps it running.
    pub(crate) fn start(program: Program, board: Board, printer: Printer) -> Self {
        let (wanted, receiver) = watch::channel(Wanted { run: true, round: 0, last: false, forced: false });
        board.set(program.source, Status::of(State::Starting));
        let supervisor = Supervisor { program, wanted: receiver, board, printer };
        Self { wanted, task: tokio::spawn(supervisor.run()) }
    }

    /// Wants it up (`true`) or drained (`false`).
    pub(crate) fn set_running(&self, run: bool) {
        self.wanted.send_modify(|wanted| wanted.run = run);
    }

    /// Wants a fresh process: the old one is drained first.
    pub(crate) fn restart(&self) {
        self.wanted.send_modify(|wanted| wanted.round += 1);
    }

    /// Asks it to end for good; [`Process::ended`] waits for it.
    pub(crate) fn end(&self, forced: bool) {
        self.wanted.send_modify(|wanted| {
            wanted.run = false;
            wanted.last = true;
            wanted.forced |= forced;
        });
    }

    /// Waits until it has ended, after [`Process::end`].
    pub(crate) async fn ended(&mut self) {
        // An error would be a panic of the supervisor, which has printed itself; its child was killed on drop.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Supervisor ===

impl Supervisor {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let wanted = *self.wanted.borrow_and_update();
            if !wanted.run {
                self.set(Status::of(State::Stopped));
                if wanted.last || self.wanted.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let started = Instant::now();
            let Ended::Died { reason, again } = self.run_once(wanted).await else { continue };
            if started.elapsed() > LONG_LIFE {
                pause = FIRST_PAUSE;
            }
            if !self.wait_after_death(&reason, again.then_some(pause)).await {
                return;
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Reports a death and waits `pause`, or for a change of mind; `false` when nobody supervises any more.
    async fn wait_after_death(&mut self, reason: &str, pause: Option<Duration>) -> bool {
        let text = match pause {
            Some(pause) => format!("{reason}; starts again in {} ms", pause.as_millis()),
            None => format!("{reason}; starts again once its settings change"),
        };
        self.printer.line(self.program.source, &text);
        self.set(Status { detail: Some(text), ..Status::of(State::Failed) });
        tokio::select! {
            () = sleep(pause.unwrap_or(Duration::MAX)) => true,
            changed = self.wanted.changed() => changed.is_ok(),
        }
    }

    async fn run_once(&mut self, asked: Wanted) -> Ended {
        self.set(Status::of(State::Starting));
        let mut child = match self.spawn() {
            Ok(child) => child,
            Err(error) => {
                let reason = format!("failed to start {}: {error}", self.program.path.display());
                return Ended::Died { reason, again: true };
            }
        };
        let mut look = interval(PROBE_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                status = child.wait() => return Self::death(&status),
                changed = self.wanted.changed() => {
                    let wanted = *self.wanted.borrow_and_update();
                    if changed.is_err() || !wanted.run || wanted.round != asked.round {
                        self.drain(&mut child).await;
                        return Ended::Asked;
                    }
                }
                _ = look.tick() => self.look(State::Ready).await,
            }
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut child = Command::new(&self.program.path)
            .args(&self.program.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C reaches this command alone, which then drains.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        self.copy_lines(child.stdout.take());
        self.copy_lines(child.stderr.take());
        Ok(child)
    }

    fn copy_lines(&self, output: Option<impl AsyncRead + Unpin + Send + 'static>) {
        let (printer, source) = (self.printer.clone(), self.program.source);
        let Some(output) = output else { return };
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                printer.line(source, &line);
            }
        });
    }

    async fn look(&self, when_ready: State) {
        let seen = self.program.probe.look().await;
        let mut status = self.board.get(self.program.source);
        if seen.ready || when_ready != State::Ready {
            status.state = when_ready;
            status.detail = None;
        } else if status.state == State::Ready {
            status.state = State::Starting;
        }
        status.connections = seen.connections.unwrap_or(status.connections);
        self.set(status);
    }

    /// Asks the child to end, waits for its clients to leave, and kills it when its time is up.
    async fn drain(&mut self, child: &mut Child) {
        self.look(State::Draining).await;
        terminate(child);
        let deadline = sleep(self.program.grace);
        tokio::pin!(deadline);
        let mut look = interval(PROBE_EVERY);
        loop {
            if self.wanted.borrow().forced {
                break;
            }
            tokio::select! {
                _ = child.wait() => return,
                () = &mut deadline => {
                    let grace = self.program.grace.as_secs();
                    self.printer.line(self.program.source, &format!("did not end within {grace} s and was killed"));
                    break;
                }
                changed = self.wanted.changed() => if changed.is_err() { break },
                _ = look.tick() => self.look(State::Draining).await,
            }
        }
        if let Err(error) = child.kill().await {
            self.printer.line(self.program.source, &format!("failed to kill it: {error}"));
        }
    }

    fn death(status: &std::io::Result<ExitStatus>) -> Ended {
        match status {
            Ok(status) if status.code() == Some(BAD_SETTINGS) => {
                Ended::Died { reason: "refused its settings (see above)".to_owned(), again: false }
            }
            Ok(status) => Ended::Died { reason: format!("ended by itself ({status})"), again: true },
            Err(error) => Ended::Died { reason: format!("was lost: {error}"), again: true },
        }
    }

    fn set(&self, status: Status) {
        self.board.set(self.program.source, status);
    }
}

fn terminate(child: &Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended just now, which is what is wanted.
        let _ = kill_process(pid, Signal::TERM);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Program {
        Program {
            source: Source::Node(1),
            path: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            probe: Probe::Always,
            grace: Duration::from_secs(5),
        }
    }

    #[tokio::test]
    async fn a_process_that_dies_is_reported_and_started_again() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("mark");
        let script = format!("test -e {0} && exec sleep 60; touch {0}; exit 3", mark.display());
        let (board, printer) = (Board::new(), Printer::keeping());
        let _process = Process::start(shell(&script), board.clone(), printer.clone());
        board.reaches(Source::Node(1), &[State::Failed], PATIENCE).await.expect("it dies");
        board.reaches(Source::Node(1), &[State::Ready], PATIENCE).await.expect("it is started again");
        assert_eq!(printer.kept(), ["node-1 | ended by itself (exit status: 3); starts again in 500 ms"]);
    }

    #[tokio::test]
    async fn refused_settings_are_not_tried_again_until_a_restart_is_asked_for() {
        let (board, printer) = (Board::new(), Printer::keeping());
        let process = Process::start(shell("exit 64"), board.clone(), printer.clone());
        board.reaches(Source::Node(1), &[State::Failed], PATIENCE).await.expect("it refuses");
        sleep(2 * FIRST_PAUSE).await;
        assert_eq!(printer.kept().len(), 1);
        process.restart();
        while printer.kept().len() < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_process_that_is_asked_to_end_gets_sigterm_and_time() {
        let (board, printer) = (Board::new(), Printer::keeping());
        let script = "trap 'echo drained; exit 0' TERM; while :; do sleep 0.05; done";
        let mut process = Process::start(shell(script), board.clone(), printer.clone());
        board.reaches(Source::Node(1), &[State::Ready], PATIENCE).await.expect("it runs");
        sleep(Duration::from_millis(200)).await; // until the shell has set its trap
        process.end(false);
        process.ended().await;
        assert_eq!(board.get(Source::Node(1)).state, State::Stopped);
        while printer.kept().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(printer.kept(), ["node-1 | drained"]);
    }

    #[tokio::test]
    async fn a_second_request_to_end_does_not_wait() {
        let (board, printer) = (Board::new(), Printer::keeping());
        let mut process =
            Process::start(shell("trap '' TERM; while :; do sleep 0.05; done"), board.clone(), printer);
        board.reaches(Source::Node(1), &[State::Ready], PATIENCE).await.expect("it runs");
        sleep(Duration::from_millis(200)).await;
        process.end(false);
        let early = tokio::time::timeout(Duration::from_millis(300), process.ended()).await;
        assert!(early.is_err(), "it ignores SIGTERM");
        process.end(true);
        tokio::time::timeout(PATIENCE, process.ended()).await.expect("it was killed");
    }
}
