//! `mctl exec`: a command in a task that runs, as if it ran here.
//!
//! With `-t` the terminal here is that of the command: what is typed goes there as it is, and its size with it. Whatever ends this, but
//! SIGKILL, the terminal is as it was before.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;

use muster_agentd::streams::channel;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::ExecArgs;
use crate::failure::{Exit, Failure, Outcome};
use crate::rest::with_query;
use crate::session::{Session, Terminal};
use crate::stream::{Event, Receiver, Sender};

/// As much as a pipe holds half of.
const BLOCK: usize = 32 * 1024;

/// Runs the command.
pub async fn run(session: &Session, args: ExecArgs, terminal: &mut Terminal) -> Outcome {
    let name = session.task_name(&args.task)?;
    let mut tty = args.tty;
    if tty && !std::io::stdin().is_terminal() {
        terminal.note("standard input is no terminal, so the command gets none; leave out -t");
        tty = false;
    }
    let mut parameters: Vec<(&str, String)> = args.command.iter().map(|word| ("command", word.clone())).collect();
    for (name, value) in [("stdin", args.stdin), ("stdout", true), ("stderr", !tty), ("tty", tty)] {
        parameters.push((name, value.to_string()));
    }
    if let (true, Some((columns, rows))) = (tty, size()) {
        parameters.push(("columns", columns.to_string()));
        parameters.push(("rows", rows.to_string()));
    }
    parameters.extend(args.attempt.map(|attempt| ("attempt", attempt.to_string())));
    let parameters: Vec<(&str, &str)> = parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let path = format!("{}/exec", Session::tasks().object_path(&session.namespace, name));
    let (sender, receiver) = session.rest.stream(&with_query(&path, &parameters)).await?;
    // Only once there is somebody to type to.
    let raw = tty.then(Raw::begin).transpose()?;
    let ended = talk(sender, receiver, args.stdin, tty, terminal).await;
    drop(raw);
    ended
}

async fn talk(mut sender: Sender, mut receiver: Receiver, stdin: bool, tty: bool, terminal: &mut Terminal) -> Outcome {
    let mut typed = stdin.then(typed);
    let (mut hang_up, mut terminate) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
    let mut resized = signal(SignalKind::window_change())?;
    let send = async {
        if tty {
            // It may have changed since it was asked for.
            resize(&mut sender).await;
        }
        send(&mut sender, &mut typed, &mut resized, tty).await;
        std::future::pending::<()>().await;
    };
    let receive = async {
        loop {
            match receiver.next().await? {
                Event::Out(bytes) => {
                    terminal.out.write_all(&bytes)?;
                    terminal.out.flush()?;
                }
                Event::Err(bytes) => {
                    let _ = terminal.err.write_all(&bytes).and_then(|()| terminal.err.flush());
                }
                Event::Ended(ended) => return ended.of_command(),
            }
        }
    };
    tokio::select! {
        biased;
        ended = receive => ended,
        _ = hang_up.recv() => Ok(Exit::OfTask(128 + 1)),
        _ = terminate.recv() => Ok(Exit::OfTask(128 + 15)),
        () = send => unreachable!("it never ends"),
    }
}

async fn send(sender: &mut Sender, typed: &mut Option<mpsc::Receiver<Vec<u8>>>, resized: &mut Signal, tty: bool) {
    loop {
        let next = async {
            match typed {
                Some(typed) => typed.recv().await,
                None => std::future::pending().await,
            }
        };
        let taken = tokio::select! {
            biased;
            _ = resized.recv(), if tty => resize(sender).await,
            bytes = next => match bytes {
                Some(bytes) => sender.send(channel::STDIN, &bytes).await,
                None => {
                    *typed = None;
                    sender.end_input().await
                }
            },
        };
        if !taken {
            return;
        }
    }
}

/// What comes from standard input. From a thread of its own, which nobody waits for: a read of a terminal cannot be given up.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    // One block is read while another is sent.
    let (to, typed) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut block = vec![0; BLOCK];
        while let Ok(read @ 1..) = std::io::stdin().lock().read(&mut block) {
            if to.blocking_send(block[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    typed
}

async fn resize(sender: &mut Sender) -> bool {
    match size() {
        Some((columns, rows)) => {
            let size = json!({ "Width": columns, "Height": rows }).to_string();
            sender.send(channel::RESIZE, size.as_bytes()).await
        }
        None => true,
    }
}

/// Columns and rows of the terminal here.
fn size() -> Option<(u16, u16)> {
    let (columns, rows) = terminal_size::terminal_size_of(std::io::stdin())?;
    (columns.0 > 0 && rows.0 > 0).then_some((columns.0, rows.0))
}

/// The terminal here as the command's: nothing that is typed means anything to it. As before when dropped.
struct Raw(Termios);

impl Raw {
    fn begin() -> Outcome<Raw> {
        let stdin = std::io::stdin();
        let failed = |error: nix::Error| Failure::new(format!("the terminal: {}", error.desc()));
        let before = tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw).map_err(failed)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Without a terminal there is nothing to give back.
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0);
    }
}
