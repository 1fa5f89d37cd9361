//! Connections to ports of containers here, as the container itself would make them: to its own loopback.
//!
//! `GET /v1/portforward/ID?ports=PORT[,PORT…]` connects to each of the ports, once. Each port has two channels of the WebSocket, one for data and
//! the next for what went wrong; the first message on each is the number of the port, two bytes, the low one first. So it is in
//! Kubernetes' `v4.channel.k8s.io`, which cannot say that one direction has ended: with it, all is over when no port sends any more, or when
//! the client closes. [`HALVES`] has one port, and the channel [`CLOSE`](super::channel::CLOSE): each direction ends by itself, and the WebSocket is
//! closed when both have.
//!
//! It promises: what was received before an end is handed on before it; a connection that broke is told as broken and not as ended; a side that
//! is slow slows the other and nothing else; no connection outlives its container by more than some seconds. What must never happen here: memory that grows with what is sent.

use std::io;
use std::sync::{Arc, Weak};

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::SplitStream;
use muster_runtime::exec::{Exec, Input, Output};
use muster_runtime::{Container, ContainerId, Error, Runtime, State as Phase};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_util::sync::CancellationToken;

use super::channel::CLOSE;
use super::{NO_SOCKET, Pairs, Socket, Streams, accepted, message, plain, refusal, socket, write};
use crate::limits::{
    FORWARD_BLOCK, FORWARD_LOOK, FORWARD_PORTS, FORWARD_QUEUE, FORWARDS_OF_ONE, HANDSHAKE_DEADLINE, RUNTIME_DEADLINE,
    STREAM_ALIVE, STREAM_FAREWELL, STREAM_SILENCE,
};

/// One port, and each direction ends by itself. What `mctl` speaks.
pub const HALVES: &str = "v1.portforward.muster.dev";

/// The protocols that are spoken, the best first.
pub const PROTOCOLS: [&str; 2] = [HALVES, "v4.channel.k8s.io"];

/// The connection to one port, or why there is none.
type Connected = Result<(Input, Output), String>;

pub(crate) async fn forward(
    State(streams): State<Streams>,
    Path(id): Path<String>,
    Query(pairs): Query<Pairs>,
    mut request: Request,
) -> Response {
    let Some(id) = ContainerId::new(id) else {
        return plain(StatusCode::BAD_REQUEST, "this is not the id of a container");
    };
    let Some((answer, protocol, upgrade)) = accepted(&mut request, &PROTOCOLS) else {
        return plain(StatusCode::BAD_REQUEST, NO_SOCKET);
    };
    let ports = match ports(&pairs, protocol) {
        Ok(ports) => ports,
        Err(why) => return plain(StatusCode::BAD_REQUEST, why),
    };
    let room = match streams.take(&id, ports.len()) {
        Ok(room) => room,
        Err(why) => return plain(StatusCode::TOO_MANY_REQUESTS, why),
    };
    let connected = join_all(ports.iter().map(|port| streams.connect(&id, *port))).await;
    let connected: Result<Vec<Connected>, Error> = connected.into_iter().collect();
    let connected = match connected {
        Ok(connected) => connected,
        Err(error) => return refusal(&error),
    };
    tokio::spawn(async move {
        if let Ok(Ok(upgraded)) = timeout(HANDSHAKE_DEADLINE, upgrade).await {
            let socket = socket(upgraded).await;
            serve(socket, &ports, connected, protocol == HALVES, &room.of_one.over).await;
        }
        // All of it until here, and not only the field that is used.
        drop(room);
    });
    answer
}

fn ports(pairs: &Pairs, protocol: &str) -> Result<Vec<u16>, String> {
    let named = pairs.iter().filter(|(name, _)| name == "ports");
    let mut ports = Vec::new();
    for text in named.flat_map(|(_, value)| value.split(',')) {
        match text.parse() {
            Ok(0) | Err(_) => return Err(format!("`{text}` is not a port")),
            Ok(port) if ports.contains(&port) => return Err(format!("port {port} is named twice")),
            Ok(port) => ports.push(port),
        }
    }
    let most = if protocol == HALVES { 1 } else { FORWARD_PORTS };
    match ports.len() {
        0 => Err("no port is named: `ports` is missing".to_owned()),
        many if many > most => Err(format!("{many} ports are named, and one WebSocket has at most {most}")),
        _ => Ok(ports),
    }
}

/// What the connections to one container have in common.
pub(super) struct OfOne {
    slots: Arc<Semaphore>,
    /// Cancelled when the container does not run any more.
    over: CancellationToken,
}

/// Room for connections to a container, for as long as it is kept.
struct Room {
    of_one: Arc<OfOne>,
    _slots: [OwnedSemaphorePermit; 2],
}

impl Streams {
    /// Room for so many connections to a container.
    fn take(&self, id: &ContainerId, many: usize) -> Result<Room, String> {
        let of_one = {
            let mut all = self.forwards_of.lock().expect("nobody panics while holding it");
            all.retain(|_, of_one| of_one.strong_count() > 0);
            all.get(id).and_then(Weak::upgrade).unwrap_or_else(|| {
                let of_one = Arc::new(OfOne {
                    slots: Arc::new(Semaphore::new(FORWARDS_OF_ONE)),
                    over: CancellationToken::new(),
                });
                tokio::spawn(watch(Arc::clone(&self.runtime), id.clone(), Arc::downgrade(&of_one)));
                all.insert(id.clone(), Arc::downgrade(&of_one));
                of_one
            })
        };
        let many = u32::try_from(many).unwrap_or(u32::MAX);
        let (Ok(own), Ok(shared)) = (
            Arc::clone(&of_one.slots).try_acquire_many_owned(many),
            Arc::clone(&self.forwards).try_acquire_many_owned(many),
        ) else {
            return Err("there are as many connections to ports as may be; close one of them".to_owned());
        };
        Ok(Room {
            of_one,
            _slots: [own, shared],
        })
    }

    /// A connection to a port. That nobody takes it there is no error of the container's.
    async fn connect(&self, id: &ContainerId, port: u16) -> Result<Connected, Error> {
        let exec = Exec::connect(port);
        let late = Error::Deadline {
            call: "connect",
            deadline: RUNTIME_DEADLINE,
        };
        let entered = async {
            let _turn = self.entering.acquire().await;
            self.runtime.exec(id, &exec).await
        };
        match timeout(RUNTIME_DEADLINE, entered).await.unwrap_or(Err(late)) {
            // Who made the connection has done his part.
            Ok(session) => Ok(session
                .stdin
                .zip(session.stdout)
                .ok_or_else(|| "the connection is not there".to_owned())),
            Err(Error::System { message, .. }) => Ok(Err(message)),
            Err(error) => Err(error),
        }
    }
}

/// Ends the connections to a container when it does not run any more, also those to what is not in it; ends itself when there are none.
async fn watch(runtime: Arc<dyn Runtime>, id: ContainerId, of_one: Weak<OfOne>) {
    let mut changes = runtime.changes();
    loop {
        let listed = timeout(RUNTIME_DEADLINE, runtime.list()).await;
        let Some(of_one) = of_one.upgrade() else { return };
        if let Ok(Ok(listed)) = listed {
            let runs = |container: &Container| container.id == id && matches!(container.state, Phase::Running { .. });
            if !listed.iter().any(runs) {
                return of_one.over.cancel();
            }
        }
        drop(of_one);
        sleep(FORWARD_LOOK).await;
        let _ = timeout(STREAM_ALIVE, changes.next()).await;
    }
}

/// The channel for the data of a port; what went wrong is on the next.
fn data(index: usize) -> u8 {
    u8::try_from(2 * index).expect("there are few ports")
}

/// Serves a peer until all is over, or it or the container is gone.
async fn serve(
    socket: Socket,
    ports: &[u16],
    connected: Vec<Connected>,
    halves: bool,
    container_over: &CancellationToken,
) {
    let (sink, stream) = socket.split();
    let (to, messages) = mpsc::channel(FORWARD_QUEUE);
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for connection in connected {
        let (input, output) = match connection {
            Ok((input, output)) => (Some(input), Ok(output)),
            Err(why) => (None, Err(why)),
        };
        inputs.push(input);
        outputs.push(output);
    }
    let (taken, all_taken) = oneshot::channel();
    let mut reader = Reader {
        stream,
        taken: inputs.iter().any(Option::is_some).then_some(taken),
        inputs,
        halves,
    };
    let told = async {
        for (index, port) in ports.iter().enumerate() {
            for channel in [data(index), data(index) + 1] {
                let _ = to.send(message(channel, &port.to_le_bytes())).await;
            }
        }
        let each = outputs.iter_mut().enumerate();
        let whole = join_all(each.map(|(index, output)| tell(output, index, halves, &to))).await;
        // What broke is over in both directions.
        if halves && whole.iter().all(|whole| *whole) {
            let _ = all_taken.await;
        }
        drop(to);
    };
    let write = write(sink, messages);
    tokio::pin!(write);
    let mut over = false;
    {
        let talk = async {
            tokio::select! {
                biased;
                () = &mut write => {}
                () = told => (&mut write).await,
            }
        };
        tokio::select! {
            biased;
            () = talk => over = true,
            () = reader.read() => {}
            () = container_over.cancelled() => {}
        }
    }
    reader.end_inputs().await;
    if over {
        // The peer closes in its turn; what it sends until then is nobody's.
        let _ = timeout(STREAM_FAREWELL, reader.read()).await;
    } else {
        // What comes until the other end has closed, too, is read: closed with something unread, a connection would be reset, and what it was
        // sent last could be lost.
        let _ = timeout(STREAM_FAREWELL, join_all(outputs.iter_mut().flatten().map(drain))).await;
    }
}

/// Hands on what a port sends until it sends no more; whether it ended well.
async fn tell(output: &mut Result<Output, String>, index: usize, halves: bool, to: &mpsc::Sender<Message>) -> bool {
    let ended = match output {
        Ok(output) => hand_on(output, data(index), to)
            .await
            .map_err(|error| format!("the connection broke: {error}")),
        Err(why) => Err(why.clone()),
    };
    let last = match &ended {
        Ok(()) if halves => message(CLOSE, &[data(index)]),
        Ok(()) => return true,
        Err(why) => message(data(index) + 1, why.as_bytes()),
    };
    let _ = to.send(last).await;
    ended.is_ok()
}

async fn hand_on(output: &mut Output, channel: u8, to: &mpsc::Sender<Message>) -> io::Result<()> {
    let mut block = vec![0; FORWARD_BLOCK];
    loop {
        match output.read(&mut block).await? {
            0 => return Ok(()),
            read => {
                if to.send(message(channel, &block[..read])).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn drain(output: &mut Output) {
    let mut block = vec![0; FORWARD_BLOCK];
    while let Ok(1..) = output.read(&mut block).await {}
}

/// What comes from the peer.
struct Reader {
    stream: SplitStream<Socket>,
    /// To the ports; `None`: no more.
    inputs: Vec<Option<Input>>,
    /// Told when nothing more can be sent to any port.
    taken: Option<oneshot::Sender<()>>,
    halves: bool,
}

impl Reader {
    /// Ends when the peer has closed, or is gone.
    async fn read(&mut self) {
        // A peer that answers nothing for so long is gone, whatever its connection says.
        while let Ok(Some(Ok(message))) = timeout(STREAM_SILENCE, self.stream.next()).await {
            match message {
                Message::Binary(bytes) => self.take(&bytes).await,
                Message::Close(_) => return,
                _ => {}
            }
        }
    }

    async fn take(&mut self, bytes: &Bytes) {
        let (channel, rest, ends) = match bytes.split_first() {
            Some((&CLOSE, [channel])) if self.halves => (*channel, &[][..], true),
            Some((channel, rest)) => (*channel, rest, false),
            None => return,
        };
        let Some(input) = self
            .inputs
            .get_mut(usize::from(channel / 2))
            .filter(|_| channel % 2 == 0)
        else {
            return;
        };
        if let Some(to) = input
            && (ends || to.write_all(rest).await.is_err())
        {
            // It may be that what is there takes no more, and sends still.
            let _ = to.shutdown().await;
            *input = None;
        }
        if self.inputs.iter().all(Option::is_none) {
            self.taken = None;
        }
    }

    async fn end_inputs(&mut self) {
        for mut input in self.inputs.iter_mut().filter_map(Option::take) {
            let _ = input.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_that_differ() {
        let asked = |text: &str, protocol: &str| {
            let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
            let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
            ports(&pairs.collect(), protocol)
        };
        assert_eq!(asked("ports=80,443&ports=1", PROTOCOLS[1]), Ok(vec![80, 443, 1]));
        assert_eq!(asked("ports=80", HALVES), Ok(vec![80]));
        for (wrong, why) in [
            ("port=80", "missing"),
            ("ports=", "not a port"),
            ("ports=0", "not a port"),
            ("ports=65536", "not a port"),
            ("ports=80,80", "twice"),
            ("ports=1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", "at most 16"),
        ] {
            let refused = asked(wrong, PROTOCOLS[1]).expect_err(wrong);
            assert!(refused.contains(why), "{wrong}: {refused}");
        }
        assert!(asked("ports=80,443", HALVES).is_err(), "one connection each");
    }
}
