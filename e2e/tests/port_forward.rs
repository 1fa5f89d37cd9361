//! Ports of tasks that run: by `mctl port-forward`, by the Python client, and by a kubectl that is told what to use.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use muster_e2e::{Cluster, PATIENCE, mctl_binary};

/// Answers a line with `pong` or by ending; what has no line, with its length and itself, once it has ended.
const SERVER: &str = r#"
import os, socket, sys, threading
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(256)
def serve(client):
    data = b""
    while not data.endswith(b"\n"):
        block = client.recv(65536)
        if not block:
            break
        data += block
    if data == b"quit\n":
        os._exit(1)
    client.sendall(b"pong\n" if data == b"ping\n" else b"%d:" % len(data) + data)
    client.close()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

/// A cluster with a task that listens, and where.
fn cluster() -> Result<(Cluster, u16)> {
    let cluster = Cluster::start(&[])?;
    // Tasks have the machine's network. The port is free at this moment, and nobody is told it but the task.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let task = serde_json::json!({
        "apiVersion": "muster.dev/v1", "kind": "Task", "metadata": {"name": "web"},
        "spec": {
            "command": ["/usr/bin/python3", "-c", SERVER, port.to_string()],
            "restartPolicy": "Always",
            "resources": {"cpus": "0.1", "memory": "128Mi"},
        },
    });
    cluster.mctl_with(&["apply", "-f", "-"], &task.to_string()).ok();
    cluster.wait_phase("web", "Running")?;
    // It runs before it listens.
    until("the task listens", || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    Ok((cluster, port))
}

/// A `mctl port-forward` that runs.
struct Forward {
    child: Child,
    /// The ports here, in the order that they were asked for.
    ports: Vec<u16>,
    said: Arc<Mutex<String>>,
}

impl Forward {
    fn begin(cluster: &Cluster, args: &[&str]) -> Result<Forward> {
        let mut command = cluster.command(&mctl_binary());
        let command = command.arg("port-forward").args(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let mut ports = Vec::new();
        for _ in &args[1..] {
            let line = lines.next().context("it ended")??;
            let (address, _) = line.split_once(" -> ").context(line.clone())?;
            let address = address
                .strip_prefix("Forwarding from 127.0.0.1:")
                .context(line.clone())?;
            ports.push(address.parse()?);
        }
        let said = Arc::new(Mutex::new(String::new()));
        let (stderr, into) = (child.stderr.take().context("a pipe")?, Arc::clone(&said));
        // Ends with the child.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                into.lock().expect("nobody panics").push_str(&format!("{line}\n"));
            }
        });
        Ok(Forward { child, ports, said })
    }

    fn said(&self, words: &str) -> bool {
        self.said.lock().expect("nobody panics").contains(words)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is answered, after all was sent and one direction has ended.
fn ask(port: u16, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(question)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

fn until(what: &str, mut so: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !so() {
        ensure!(began.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn ports_of_a_task_are_reached_here() -> Result<()> {
    let (cluster, port) = cluster()?;
    // On port 1 nobody listens.
    let mut forward = Forward::begin(&cluster, &["web", &format!(":{port}"), ":1"])?;
    let [web, nobody] = forward.ports[..] else {
        unreachable!("two were asked for")
    };
    assert_eq!(ask(web, b"ping\n")?, b"pong\n");
    // More than all buffers on the way hold, to its end, and back to its end.
    let much = vec![b'x'; 4 << 20];
    let answer = ask(web, &much)?;
    ensure!(answer.len() == much.len() + b"4194304:".len(), "{} bytes", answer.len());
    assert!(answer.starts_with(b"4194304:x"));
    let many: Vec<_> = (0..40)
        .map(|_| std::thread::spawn(move || ask(web, b"ping\n")))
        .collect();
    for asked in many {
        assert_eq!(asked.join().expect("no panic")?, b"pong\n");
    }
    assert!(ask(nobody, b"ping\n").is_err(), "it is reset, and not ended");
    until("it is said", || {
        forward.said("-> 1: port 1 in the container: Connection refused")
    })?;
    let taken = cluster.mctl(&["port-forward", "web", &format!("{web}:{port}")]);
    assert!(
        taken.code == 1 && taken.stderr.contains("choose another port here"),
        "{taken:?}"
    );
    let missing = cluster.mctl(&["port-forward", "nobody", "80"]);
    assert!(
        missing.code == 1 && missing.stderr.contains("\"nobody\" not found"),
        "{missing:?}"
    );
    cluster.mctl(&["delete", "task", "web"]).ok();
    assert_eq!(forward.child.wait()?.code(), Some(1), "it ends with its task");
    Ok(())
}

#[test]
fn forwarding_goes_on_when_the_task_and_the_server_are_started_again() -> Result<()> {
    let (mut cluster, port) = cluster()?;
    let forward = Forward::begin(&cluster, &["web", &format!(":{port}")])?;
    let web = forward.ports[0];
    assert_eq!(ask(web, b"ping\n")?, b"pong\n");
    // It ends, and begins anew.
    let _ = ask(web, b"quit\n");
    until("the next attempt to be reached", || {
        ask(web, b"ping\n").is_ok_and(|answer| answer == b"pong\n")
    })?;
    until("it to be said", || forward.said("attempt 2"))?;
    cluster.keep_address()?;
    cluster.crash();
    until("it to be said", || forward.said("connections wait until it is back"))?;
    // This one waits for the server.
    let waits = std::thread::spawn(move || ask(web, b"ping\n"));
    cluster.launch()?;
    let waited = waits.join().expect("no panic");
    ensure!(
        waited.as_ref().is_ok_and(|answer| answer == b"pong\n"),
        "{waited:?}: {}",
        forward.said.lock().expect("nobody panics")
    );
    until("it to be said", || forward.said("the API server is back"))?;
    assert_eq!(ask(web, b"ping\n")?, b"pong\n");
    Ok(())
}

#[test]
fn other_clients_reach_ports_of_pods_or_are_told_what_does() -> Result<()> {
    let (cluster, port) = cluster()?;
    let script = format!(
        "\
from kubernetes import client, config
from kubernetes.stream import portforward
config.load_kube_config()
call = client.CoreV1Api().connect_get_namespaced_pod_portforward
forward = portforward(call, 'web', 'default', ports='{port},1')
web = forward.socket({port})
web.setblocking(True)
web.settimeout(30)
web.sendall(b'ping\\n')
print(web.recv(5).decode().strip())
nobody = forward.socket(1)
nobody.settimeout(30)
print(nobody.recv(1), forward.error(1))
"
    );
    let ran = cluster
        .command(Path::new("/usr/bin/python3"))
        .args(["-c", &script])
        .output()?;
    let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert_eq!(
        printed.trim_end().split_once('\n'),
        Some(("pong", "b'' port 1 in the container: Connection refused (os error 111)")),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    let told = cluster.kubectl(&["port-forward", "pod/web", &format!(":{port}")], "");
    assert!(told.code == 1 && told.stderr.contains("mctl port-forward"), "{told:?}");
    Ok(())
}
