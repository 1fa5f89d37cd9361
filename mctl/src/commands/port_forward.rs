//! `mctl port-forward`: ports of a task, reached at ports here.
//!
//! Each connection here is one to the task, through the API server and the agent, with a WebSocket of its own; so what is slow slows nothing
//! but itself. The listeners stay whatever happens: while the server or the agent is away, or the task is started again, new connections wait,
//! and what happens is said. It is over when the task is.
//!
//! It promises: all that was received before an end is handed on before it; a connection that broke on the way is reset here, so that nobody
//! takes what came of it for the whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures::{SinkExt as _, StreamExt as _};
use muster_agentd::streams::channel::CLOSE;
use muster_agentd::streams::forward::HALVES;
use muster_api::task_state::Phase;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::Message;

use super::logs::{attempt, phase, state};
use crate::failure::{Failure, Outcome};
use crate::observe::{AWAY_MAX, Look, Observer};
use crate::rest::{CallError, Rest, with_query};
use crate::session::{Session, Terminal};
use crate::stream::{Socket, message};

/// How much goes into one message.
const BLOCK: usize = 16 * 1024;
/// Connections at a time: as many as an agent has for one container; more wait to be accepted.
const CONNECTIONS: usize = 128;
/// Before it is tried again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Things to say that may wait until they were said.
const NOTICES: usize = 16;

/// Data of the one port; what went wrong with it is on the next channel.
const DATA: u8 = 0;
const ERROR: u8 = 1;

/// `mctl port-forward`.
#[derive(Debug, Args)]
pub struct PortForwardArgs {
    /// The task.
    #[arg(value_name = "TASK")]
    pub task: String,
    /// Ports of the task, each with the port here in front of it when that is another; `:REMOTE` takes any here that is free.
    #[arg(value_name = "[LOCAL:]REMOTE", required = true)]
    pub ports: Vec<String>,
    /// Where to listen here: addresses or `localhost`. Whoever can reach them can reach the task.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "127.0.0.1")]
    pub address: Vec<String>,
}

/// Runs the command.
pub async fn run(session: &Session, args: PortForwardArgs, terminal: &mut Terminal) -> Outcome {
    let name = session.task_name(&args.task)?;
    let mappings: Vec<Mapping> = args
        .ports
        .iter()
        .map(|text| Mapping::parse(text))
        .collect::<Outcome<_>>()?;
    let addresses = addresses(&args.address)?;
    let path = Session::tasks().object_path(&session.namespace, name);
    let task = session.rest.get(&path).await?;
    if let Some(over) = over(&task) {
        return Err(over);
    }
    let doors = listen(&addresses, &mappings).await?;
    for door in &doors {
        terminal.line(format!("Forwarding from {} -> {}", door.local, door.remote))?;
    }
    let seen = Seen::of(&task);
    if seen != seen.running() {
        terminal.note(seen.text(&task));
    }
    let (tell, mut told) = mpsc::channel(NOTICES);
    let way = Way {
        rest: session.rest.clone(),
        path: format!("{path}/portforward"),
        tell,
    };
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut work = JoinSet::new();
    for door in doors {
        work.spawn(serve(door, way.clone(), Arc::clone(&slots)));
    }
    let observer = Observer::new(&session.rest, &Session::tasks(), &session.namespace, name);
    work.spawn(watch(observer, seen, way));
    let mut last = String::new();
    while let Some(notice) = told.recv().await {
        match notice {
            // Many connections meet the same.
            Notice::Said(text) if text == last => {}
            Notice::Said(text) => {
                terminal.note(&text);
                last = text;
            }
            Notice::Over(failure) => return Err(failure),
        }
    }
    Err(Failure::new("nobody listens any more"))
}

/// A port of the task, and the port here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    /// 0: any that is free.
    local: u16,
    remote: u16,
}

impl Mapping {
    fn parse(text: &str) -> Outcome<Mapping> {
        let wrong = || {
            Failure::new(format!(
                "`{text}`: write ports as REMOTE, LOCAL:REMOTE or :REMOTE, such as 8080:80; a port is a number from 1 to 65535"
            ))
        };
        let (local, remote) = match text.split_once(':') {
            None => (text, text),
            Some(("", remote)) => ("0", remote),
            Some(both) => both,
        };
        let (Ok(local), Ok(remote @ 1..)) = (local.parse(), remote.parse()) else {
            return Err(wrong());
        };
        Ok(Mapping { local, remote })
    }
}

/// The addresses to listen at, and whether each must be there.
fn addresses(texts: &[String]) -> Outcome<Vec<(IpAddr, bool)>> {
    let mut addresses = Vec::new();
    for text in texts {
        if text == "localhost" {
            addresses.push((Ipv4Addr::LOCALHOST.into(), true));
            // Not every machine has one.
            addresses.push((Ipv6Addr::LOCALHOST.into(), false));
            continue;
        }
        let address = text.parse();
        let failed = |_| {
            Failure::new(format!(
                "--address {text}: write an address such as 127.0.0.1, or localhost"
            ))
        };
        addresses.push((address.map_err(failed)?, true));
    }
    Ok(addresses)
}

/// A listener here, for a port of the task.
struct Door {
    listener: TcpListener,
    local: SocketAddr,
    remote: u16,
}

async fn listen(addresses: &[(IpAddr, bool)], mappings: &[Mapping]) -> Outcome<Vec<Door>> {
    let mut doors = Vec::new();
    for mapping in mappings {
        let mut port = mapping.local;
        for (address, needed) in addresses {
            let bound = async {
                let listener = TcpListener::bind((*address, port)).await?;
                let local = listener.local_addr()?;
                Ok::<_, std::io::Error>((listener, local))
            };
            match bound.await {
                Ok((listener, local)) => {
                    // The same at all addresses.
                    port = local.port();
                    doors.push(Door {
                        listener,
                        local,
                        remote: mapping.remote,
                    });
                }
                Err(error) if *needed => {
                    let at = SocketAddr::new(*address, port);
                    return Err(Failure::new(format!(
                        "cannot listen at {at}: {error}; choose another port here, such as :{}",
                        mapping.remote
                    )));
                }
                Err(_) => {}
            }
        }
    }
    Ok(doors)
}

/// What is to be said.
enum Notice {
    Said(String),
    Over(Failure),
}

/// The way to the task.
#[derive(Clone)]
struct Way {
    rest: Rest,
    path: String,
    tell: mpsc::Sender<Notice>,
}

/// Why a connection did not end well.
enum Broken {
    /// Whoever connected here is gone: nobody has to be told.
    Here,
    There(String),
}

async fn serve(door: Door, way: Way, slots: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let slot = Arc::clone(&slots).acquire_owned().await;
        match door.listener.accept().await {
            Ok((client, _)) => {
                let (way, local, remote) = (way.clone(), door.local, door.remote);
                connections.spawn(async move {
                    way.connect(client, local, remote).await;
                    drop(slot);
                });
            }
            Err(error) => {
                way.say(format!("{}: no connection can be accepted: {error}", door.local))
                    .await;
                sleep(PAUSE.1).await;
            }
        }
    }
}

impl Way {
    async fn say(&self, text: String) {
        // When nobody listens any more, all is over.
        let _ = self.tell.send(Notice::Said(text)).await;
    }

    async fn connect(&self, mut client: TcpStream, local: SocketAddr, remote: u16) {
        let _ = client.set_nodelay(true);
        let carried = match self.reach(local, remote).await {
            Ok(socket) => carry(&mut client, socket).await,
            Err(error) => Err(Broken::There(error.to_string())),
        };
        if let Err(broken) = carried {
            let _ = client.set_zero_linger();
            drop(client);
            if let Broken::There(why) = broken {
                self.say(format!("{local} -> {remote}: {why}")).await;
            }
        }
    }

    /// A connection to the port, as soon as there can be one.
    async fn reach(&self, local: SocketAddr, remote: u16) -> Result<Socket, CallError> {
        let path = with_query(&self.path, &[("ports", &remote.to_string())]);
        let until = Instant::now() + AWAY_MAX;
        let mut pause = PAUSE.0;
        loop {
            let error = match self.rest.socket(&path, &[HALVES]).await {
                Ok(socket) => return Ok(socket),
                Err(error) => error,
            };
            // A conflict is a task that does not run at this moment.
            if !(error.is_passing() || error.code() == 409) || Instant::now() >= until {
                return Err(error);
            }
            self.say(format!("{local} -> {remote}: waits: {error}")).await;
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

/// Carries bytes both ways until both directions have ended.
async fn carry(client: &mut TcpStream, socket: Socket) -> Result<(), Broken> {
    let (mut sink, mut stream) = socket.split();
    let (mut read, mut write) = client.split();
    let up = async {
        let mut block = vec![0; BLOCK];
        loop {
            let many = read.read(&mut block).await.map_err(|_| Broken::Here)?;
            let next = if many == 0 {
                message(CLOSE, &[DATA])
            } else {
                message(DATA, &block[..many])
            };
            // That a WebSocket takes no more is told by what comes from it.
            if sink.send(next).await.is_err() || many == 0 {
                return Ok(());
            }
        }
    };
    let down = async {
        let broken = |why: String| Err(Broken::There(why));
        let (mut numbers, mut ended) = (2, false);
        loop {
            let bytes = match stream.next().await {
                Some(Ok(Message::Binary(bytes))) => bytes,
                // The agent closes when both directions have ended, and so has been told everything.
                Some(Ok(Message::Close(_))) if ended => return Ok(()),
                Some(Ok(Message::Close(_))) | None => {
                    return broken(
                        "the connection broke off: the server or the agent has gone, or the task was ended".to_owned(),
                    );
                }
                Some(Err(error)) => return broken(format!("the connection broke off: {error}")),
                Some(Ok(_)) => continue,
            };
            match bytes.split_first() {
                // Each channel begins with the number of the port.
                Some(_) if numbers > 0 => numbers -= 1,
                Some((&DATA, rest)) => write.write_all(rest).await.map_err(|_| Broken::Here)?,
                Some((&ERROR, why)) => return broken(String::from_utf8_lossy(why).into_owned()),
                Some((&CLOSE, [DATA])) => {
                    ended = true;
                    let _ = write.shutdown().await;
                }
                _ => {}
            }
        }
    };
    tokio::try_join!(up, down).map(|((), ())| ())
}

/// What of a task has to do with its ports.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    phase: Phase,
    attempt: u64,
    reachable: bool,
}

impl Seen {
    fn of(task: &Value) -> Seen {
        let reachability = task["status"]["reachability"].as_str();
        Seen {
            phase: phase(task),
            attempt: attempt(task),
            reachable: reachability.is_none_or(|reachability| reachability == "Reachable"),
        }
    }

    /// The same task, were it running.
    fn running(&self) -> Seen {
        Seen {
            phase: Phase::Running,
            reachable: true,
            ..self.clone()
        }
    }

    fn text(&self, task: &Value) -> String {
        let name = task["metadata"]["name"].as_str().unwrap_or_default();
        match self.phase {
            _ if !self.reachable => {
                let why = task["status"]["reachabilityMessage"].as_str().unwrap_or_default();
                format!("task/{name}: its agent cannot be reached; connections wait. {why}")
                    .trim_end()
                    .to_owned()
            }
            Phase::Running => format!("task/{name} runs (attempt {})", self.attempt),
            Phase::Killing => format!("task/{name} is being stopped"),
            _ => format!("{}: connections wait until it runs", state(task)),
        }
    }
}

/// That nothing can be forwarded any more, if so.
fn over(task: &Value) -> Option<Failure> {
    phase(task)
        .is_terminal()
        .then(|| Failure::new(format!("{}: it has no ports any more", state(task))))
}

/// Says what happens to the task, and to the server.
async fn watch(mut observer: Observer, mut seen: Seen, way: Way) {
    let mut away = false;
    loop {
        match observer.look().await {
            Ok(Look::Same) => {}
            Ok(Look::Seen(None)) => {
                let _ = way.tell.send(Notice::Over(Failure::new("the task was deleted"))).await;
                return;
            }
            Ok(Look::Seen(Some(task))) => {
                if std::mem::take(&mut away) {
                    way.say("the API server is back".to_owned()).await;
                }
                if let Some(over) = over(&task) {
                    let _ = way.tell.send(Notice::Over(over)).await;
                    return;
                }
                let now = Seen::of(&task);
                if now != seen {
                    way.say(now.text(&task)).await;
                    seen = now;
                }
            }
            Ok(Look::Away(error)) => {
                if !std::mem::replace(&mut away, true) {
                    way.say(format!("{error}; connections wait until it is back")).await;
                }
                observer.anew();
                sleep(PAUSE.1).await;
            }
            Err(error) => {
                way.say(format!("what happens to the task cannot be seen: {error}"))
                    .await;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_written_as_for_kubectl() {
        let parse = |text: &str| Mapping::parse(text).ok().map(|mapping| (mapping.local, mapping.remote));
        assert_eq!(parse("80"), Some((80, 80)));
        assert_eq!(parse("8080:80"), Some((8080, 80)));
        assert_eq!(parse(":80"), Some((0, 80)));
        assert_eq!(parse("0:80"), Some((0, 80)));
        for wrong in ["", ":", "0", "80:", "80:0", "65536", "a:80", "http", "1:2:3", "-1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn addresses_are_numbers_or_localhost() {
        let parse = |text: &str| addresses(&[text.to_owned()]).map(|all| all.len()).ok();
        assert_eq!(
            (parse("127.0.0.1"), parse("::"), parse("localhost")),
            (Some(1), Some(1), Some(2))
        );
        assert_eq!(parse("example.com"), None);
    }

    #[tokio::test]
    async fn a_free_port_is_the_same_at_all_addresses() {
        let all = [
            (Ipv4Addr::LOCALHOST.into(), true),
            (Ipv4Addr::new(127, 0, 0, 2).into(), true),
        ];
        let doors = listen(&all, &[Mapping { local: 0, remote: 80 }])
            .await
            .expect("free ports");
        assert_eq!(doors[0].local.port(), doors[1].local.port());
        let taken = Mapping {
            local: doors[0].local.port(),
            remote: 80,
        };
        let refused = listen(&all, &[taken]).await.err().expect("it is taken").to_string();
        assert!(refused.contains("choose another port here, such as :80"), "{refused}");
    }

    #[test]
    fn what_happens_to_a_task_is_said_once() {
        let task = |phase: &str, number: u64, reachability: &str| {
            json!({"metadata": {"name": "web"}, "status": {
                "phase": phase, "reachability": reachability, "attempts": [{"number": number}],
            }})
        };
        let text = |task: &Value| Seen::of(task).text(task);
        let runs = task("Running", 1, "Reachable");
        assert_eq!(Seen::of(&runs), Seen::of(&runs).running());
        assert_eq!(text(&task("Running", 2, "Reachable")), "task/web runs (attempt 2)");
        assert_eq!(
            text(&task("Starting", 1, "Reachable")),
            "task/web is Starting: connections wait until it runs"
        );
        assert!(text(&task("Running", 1, "Unknown")).contains("its agent cannot be reached"));
        assert!(over(&runs).is_none());
        assert!(over(&task("Finished", 1, "Reachable")).is_some());
    }
}
