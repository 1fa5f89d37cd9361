//! What a session sees and may do in a container, beside the container's own command; terminals; files; and who dies with whom.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use libtest_mimic::Trial;
use muster_runtime::copy::{Place, pack, unpack};
use muster_runtime::exec::{Ended, Exec, Output, Session, Size};
use muster_runtime::{ContainerId, ContainerSpec, Error, Runtime, User};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::Cleans as _;
use crate::process::{Machine, Way, output, until};
use crate::ways::{self, tests};

pub(crate) fn trials() -> Vec<Trial> {
    let isolated = tests! {
        "session_is_as_confined_as_the_command": confined,
        "session_holds_nothing_of_the_machine": closed,
    };
    let any = tests! {
        "session_has_the_user_the_directory_and_the_environment_of_the_command": like_the_command,
        "session_may_have_a_terminal": terminal,
        "session_in_a_directory_that_is_gone_is_not_run": no_directory,
        "files_go_into_a_container_and_out_of_it": files,
        "hostile_files_are_not_followed": hostile,
        "port_of_a_container_is_connected_to": port,
    };
    ways::trials(&isolated, &any)
}

fn id() -> ContainerId {
    ContainerId::new("a").unwrap()
}

async fn all(stream: Option<Output>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes).await.unwrap();
    }
    bytes
}

async fn to_end(mut session: Session) -> (Vec<u8>, String, Ended) {
    let (out, err) = (session.stdout.take(), session.stderr.take());
    let (out, err, ended) = futures::join!(all(out), all(err), session.ended);
    (out, String::from_utf8(err).unwrap(), ended)
}

/// What a script prints in the container.
async fn ask(runtime: &Arc<dyn Runtime>, script: &str) -> String {
    let session = runtime
        .exec(&id(), &Exec::command(["/bin/sh", "-c", script]))
        .await
        .unwrap();
    let (out, err, ended) = to_end(session).await;
    assert_eq!(ended, Ended::with(0), "{script}: {err}");
    String::from_utf8(out).unwrap().trim().to_owned()
}

/// Starts a container whose command prints what the script does, and goes on. Gives what it printed.
async fn begin(runtime: &Arc<dyn Runtime>, machine: &Machine, spec: ContainerSpec, script: &str) -> String {
    let whole = format!("{script}\necho the end; exec sleep infinity");
    let argv = machine.script(&whole).argv;
    runtime.create(&id(), &ContainerSpec { argv, ..spec }).await.unwrap();
    runtime.start(&id()).await.unwrap();
    until("the command has printed all", async || {
        output(runtime, &id()).await.0.ends_with("the end\n")
    })
    .await;
    let (out, _) = output(runtime, &id()).await;
    out.strip_suffix("the end\n").unwrap().trim().to_owned()
}

/// Of the trees of cgroups those that limit something.
const CONFINEMENT: &str = "grep -E '^(Uid|Gid|Cap|NoNewPrivs|Seccomp)' /proc/self/status; ulimit -a; umask; \
     cat /proc/self/oom_score_adj; grep -E ':(cpu|devices|memory|pids):' /proc/self/cgroup; for n in pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; done; hostname";

async fn confined(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let command = begin(&runtime, &machine, machine.script(""), CONFINEMENT).await;
    assert_eq!(ask(&runtime, CONFINEMENT).await, command);
    machine.clean().await;
}

async fn closed(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    begin(&runtime, &machine, machine.script(""), "").await;
    assert_eq!(
        ask(&runtime, "ls /proc/self/fd | tr '\\n' ' '").await,
        "0 1 2 3",
        "3 is that of ls"
    );
    // The process that looks after the session is seen, and not looked into.
    let look = "for p in /proc/[0-9]*; do grep -qs muster-inside $p/comm || continue; echo found; readlink $p/exe $p/cwd $p/fd/*; cat $p/environ; \
                echo > $p/exe; cat $p/root/etc/hostname; done 2>/dev/null; true";
    assert_eq!(ask(&runtime, look).await, "found");
    machine.clean().await;
}

async fn like_the_command(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let own = nix::unistd::geteuid().as_raw();
    let uid = if own == 0 { 1234 } else { own };
    let mut spec = machine.script("");
    spec.user = Some(User {
        uid,
        gid: nix::unistd::getegid().as_raw(),
    });
    spec.env.insert("OF_THE_TASK".to_owned(), "yes".to_owned());
    spec.working_dir = Some("/usr".into());
    let who = "id -u; id -g; pwd; env | grep -vE '^(_|PWD|OLDPWD|SHLVL)=' | sort";
    let command = begin(&runtime, &machine, spec, who).await;
    assert_eq!(ask(&runtime, who).await, command);
    assert!(command.contains("OF_THE_TASK=yes"), "{command}");
    machine.clean().await;
}

async fn terminal(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    begin(&runtime, &machine, machine.script(""), "").await;
    let script = "tty; stty size; echo $TERM; read line; stty size; echo got $line; read line; echo never";
    let mut session = runtime
        .exec(
            &id(),
            &Exec {
                stdin: true,
                terminal: Some(Size { columns: 91, rows: 33 }),
                ..Exec::command(["/bin/sh", "-c", script])
            },
        )
        .await
        .unwrap();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    let mut seen = String::new();
    let mut read = async |until: &str| {
        let mut block = [0; 1024];
        while !seen.contains(until) {
            let read = stdout.read(&mut block).await.unwrap();
            assert_ne!(read, 0, "{seen}");
            seen += &String::from_utf8_lossy(&block[..read]);
        }
        seen.clone()
    };
    let first = read("xterm\r\n").await;
    assert!(first.contains("/dev/pts/") && first.contains("33 91\r\n"), "{first}");
    let resized = session
        .terminal
        .as_ref()
        .unwrap()
        .resize(Size { columns: 100, rows: 40 });
    resized.unwrap();
    stdin.write_all(b"word\n").await.unwrap();
    let second = read("got word\r\n").await;
    assert!(second.contains("40 100\r\n"), "{second}");
    // What is typed is what a keyboard says.
    stdin.write_all(&[3]).await.unwrap();
    assert_eq!(session.ended.await, Ended::with(130), "by SIGINT");
    machine.clean().await;
}

async fn no_directory(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let mut spec = machine.script("");
    let inside = if way == Way::Plain {
        machine.config.state_dir.join("containers/a/sandbox/gone")
    } else {
        "/sandbox/gone".into()
    };
    spec.working_dir = None;
    begin(&runtime, &machine, spec, "").await;
    // A link to what only magic could lead to.
    ask(&runtime, &format!("ln -s /proc/self/fd/8 {}", inside.display())).await;
    let session = runtime
        .exec(&id(), &Exec::command([inside.to_str().unwrap()]))
        .await
        .unwrap();
    let (_, _, ended) = to_end(session).await;
    assert!(ended.code == 127 || ended.code == 126, "{ended:?}");
    // What ends at once may do so before anybody looks after it.
    for _ in 0..30 {
        let session = runtime.exec(&id(), &Exec::command(["/etc/passwd"])).await.unwrap();
        assert_eq!(to_end(session).await.2.code, 126, "found, and cannot be run");
    }
    machine.clean().await;
}

/// A path of a container's sandbox as the container sees it.
fn inside(machine: &Machine, way: Way, name: &str) -> String {
    match way {
        Way::Plain => machine
            .directory(&id())
            .join("sandbox")
            .join(name)
            .to_str()
            .unwrap()
            .to_owned(),
        _ => format!("/sandbox/{name}"),
    }
}

async fn get(runtime: &Arc<dyn Runtime>, path: &str) -> (Vec<u8>, Ended) {
    let session = runtime.exec(&id(), &Exec::pack(path)).await.unwrap();
    let (bytes, _, ended) = to_end(session).await;
    (bytes, ended)
}

async fn put(runtime: &Arc<dyn Runtime>, path: &str, archive: &[u8]) -> Ended {
    let mut session = runtime.exec(&id(), &Exec::unpack(path)).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let write = async move {
        // One that is refused is not read to its end.
        let _ = stdin.write_all(archive).await;
        let _ = stdin.shutdown().await;
    };
    futures::join!(write, to_end(session)).1.2
}

async fn files(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    begin(&runtime, &machine, machine.script(""), "").await;
    let temp = tempfile::tempdir().unwrap();
    let from = temp.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("big"), "0123456789".repeat(100_000)).unwrap();
    fs::write(from.join("script"), "#!/bin/sh\necho it runs\n").unwrap();
    fs::set_permissions(from.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut archive = Vec::new();
    pack(Place::Here, &from, &mut archive).unwrap();
    let to = inside(&machine, way, "to");
    assert_eq!(put(&runtime, &to, &archive).await, Ended::with(0));
    assert_eq!(
        ask(&runtime, &format!("{to}/script; wc -c < {to}/big")).await,
        "it runs\n1000000"
    );
    let (back, ended) = get(&runtime, &to).await;
    assert_eq!(ended, Ended::with(0));
    unpack(Place::Here, temp.path(), &back[..]).unwrap();
    assert_eq!(
        fs::read(temp.path().join("to/big")).unwrap(),
        fs::read(from.join("big")).unwrap()
    );
    // What breaks off leaves nothing; what cannot be is said.
    let half = put(&runtime, &to, &archive[..archive.len() / 2]).await;
    assert_eq!(half.code, 1, "{half:?}");
    assert_eq!(
        ask(&runtime, &format!("ls -A {to}")).await.lines().count(),
        3,
        "big, script and from"
    );
    let (_, absent) = get(&runtime, "/no/such/file").await;
    assert!(absent.why.unwrap().contains("No such file"));
    machine.clean().await;
}

async fn hostile(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    begin(&runtime, &machine, machine.script(""), "").await;
    let at = |name: &str| inside(&machine, way, name);
    let here = tempfile::tempdir().unwrap();
    let mut archive = Vec::new();
    fs::write(here.path().join("file"), "evil").unwrap();
    pack(Place::Here, &here.path().join("file"), &mut archive).unwrap();
    let (pipe, exe, root) = (at("pipe"), at("exe"), at("root"));
    ask(
        &runtime,
        &format!("mkfifo {pipe}; ln -s /proc/self/exe {exe}; ln -s /proc/self/root {root}"),
    )
    .await;
    for (path, why) in [
        (&pipe, "pipe"),
        (&exe, "symbolic links"),
        (&"/dev/zero".to_owned(), "a device"),
    ] {
        let (_, ended) = get(&runtime, path).await;
        assert!(
            ended.code == 1 && ended.why.as_ref().unwrap().contains(why),
            "{path}: {ended:?}"
        );
    }
    let through = put(&runtime, &format!("{root}/sandbox"), &archive).await;
    assert_eq!(through.code, 1, "{through:?}");
    // A file takes the place of the link, and leaves alone what that points to.
    assert_eq!(put(&runtime, &exe, &archive).await, Ended::with(0));
    assert_eq!(ask(&runtime, &format!("cat {exe}")).await, "evil");
    // Whoever unpacks here is led nowhere by what comes from there.
    let tree = at("tree");
    ask(
        &runtime,
        &format!("mkdir {tree}; ln -s /etc {tree}/out; ln -s .. {tree}/up; echo x > {tree}/file"),
    )
    .await;
    let (bytes, _) = get(&runtime, &tree).await;
    let copied = unpack(Place::Here, here.path(), &bytes[..]).unwrap();
    assert_eq!(copied.left_out.len(), 2, "{:?}", copied.left_out);
    machine.clean().await;
}

async fn port(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    begin(&runtime, &machine, machine.script(""), "").await;
    // Containers share the machine's network, so a listener of the test is one of theirs.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut session = runtime.exec(&id(), &Exec::connect(port)).await.unwrap();
    let (mut there, _) = listener.accept().await.unwrap();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    stdin.write_all(b"question").await.unwrap();
    stdin.shutdown().await.unwrap();
    let mut asked = String::new();
    there.read_to_string(&mut asked).await.unwrap();
    there.write_all(b"answer").await.unwrap();
    drop(there);
    let mut answered = String::new();
    stdout.read_to_string(&mut answered).await.unwrap();
    assert_eq!((asked.as_str(), answered.as_str()), ("question", "answer"));
    drop(listener);
    let refused = runtime.exec(&id(), &Exec::connect(port)).await;
    assert!(
        matches!(&refused, Err(Error::System { message, .. }) if message.contains("refused")),
        "{refused:?}"
    );
    machine.clean().await;
}
