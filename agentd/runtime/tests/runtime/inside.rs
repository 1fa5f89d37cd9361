//! What a command finds when it looks around and tries to get out.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Trial;
use muster_runtime::process::Config;
use muster_runtime::{
    ContainerId, ContainerSpec, DeviceNode, Error, MemoryDirectory, Mount, ProcessRuntime, Rootfs, Runtime, Stop, User,
};

use crate::process::{Machine, Way, cgroup_directories, exit, output, until};
use crate::ways::{self, tests};
use crate::{Cleans as _, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial(
            "isolated::state_and_hidden_files_of_the_machine_are_not_seen",
            false,
            hidden,
        ),
        trial("plain::what_needs_isolation_is_refused", false, refused),
    ];
    let isolated = tests! {
        "command_sees_only_what_is_its_own": sees,
        "command_cannot_get_out": cannot,
        "device_works_when_asked_for_and_only_then": devices,
        "limits_are_set_on_the_cgroup": limits,
        "processes_are_limited": pids,
        "image_is_shared_and_its_writable_layer_private": image,
        "named_image_says_what_its_container_does_not": named_image,
        "mounts_are_writable_only_when_asked": mounts,
        "directories_in_memory_are_empty_and_bounded": memory,
        "nothing_is_made_in_what_is_the_machines": nowhere,
        "only_network_and_users_are_said_to_be_shared": isolation,
    };
    let any = tests! {
        "command_starts_in_its_sandbox_with_a_clean_environment": environment,
        "command_may_end_in_its_own_way_when_it_is_stopped": trap,
        "real_time_signal_is_reported": real_time,
        "working_directory_that_does_not_exist_is_an_exit": no_directory,
        "user_is_who_was_asked_for": user,
        "variables_of_a_file_win_and_are_written_down_nowhere": variables,
    };
    trials.extend(ways::trials(&isolated, &any));
    trials
}

/// Runs a script of lines `name: command`; gives each command's output, standard error included, and its exit code.
async fn ask(
    machine: &Machine,
    runtime: &Arc<dyn Runtime>,
    spec: &ContainerSpec,
    questions: &[&str],
) -> BTreeMap<String, String> {
    let line = |question: &&str| {
        let (name, command) = question.split_once(": ").unwrap();
        format!("echo \"{name}=$( ({command}) 2>&1 | tr '\\n' ' ')\"\n")
    };
    let script: String = questions.iter().map(line).collect();
    let argv = machine.script(&script).argv;
    let (exit, out, err) = machine.run(runtime, &ContainerSpec { argv, ..spec.clone() }).await;
    assert_eq!((exit.code, exit.error), (Some(0), None), "{err}");
    out.lines()
        .map(|line| line.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

async fn sees(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let questions = [
        "processes: ls -d /proc/[0-9]* | wc -l",
        "hostname: hostname",
        "capabilities: grep Cap /proc/self/status | cut -f2 | sort -u",
        "seccomp: grep -w Seccomp: /proc/self/status | cut -f2",
        "privileges: grep NoNewPrivs /proc/self/status | cut -f2",
        // Of the ignored ones, 32 and 33 are the C library's own: they stay as they were.
        "signals: grep -E 'SigBlk|SigIgn' /proc/self/status | cut -f2 | sed 's/^00000001[08]/000000000/' | sort -u",
        "devices: ls /dev",
        "files: ls /proc/self/fd",
        "run: ls -A /run",
        "tmp: ls -A /tmp",
        "shadow: cat /etc/shadow",
        "masked: cat /proc/kcore /proc/keys /proc/timer_list /proc/acpi/* /sys/firmware/* 2>/dev/null | head -c 10",
        "cores: ulimit -c",
        "oom: cat /proc/self/oom_score_adj",
        "root: ls -d /etc /usr /bin/sh",
    ];
    let seen = ask(&machine, &runtime, &machine.script(""), &questions).await;
    let of = |name: &str| seen[name].as_str();
    let processes: usize = of("processes").parse().unwrap();
    assert!(processes < 10, "only its own processes: {processes}");
    assert_eq!(of("hostname"), "run");
    assert_eq!(of("capabilities"), "0000000000000000", "in all sets");
    assert_eq!(
        (of("seccomp"), of("privileges"), of("signals")),
        ("2", "1", "0000000000000000")
    );
    let usual = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(of("devices"), usual);
    assert_eq!(of("files"), "0 1 2 3", "the last is that of ls");
    assert_eq!((of("run"), of("tmp"), of("shadow"), of("masked")), ("", "", "", ""));
    assert_eq!((of("cores"), of("oom")), ("0", "200"));
    assert_eq!(of("root"), "/bin/sh /etc /usr");
    machine.clean().await;
}

async fn cannot(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let attempts = [
        "touch /etc/x",
        "touch /usr/x",
        "touch /var/x",
        "touch /x",
        "mknod /tmp/disk b 254 0",
        "mknod /dev/mem c 1 1",
        "mount -t tmpfs tmpfs /mnt",
        "mount -o remount,rw,bind /",
        "umount /proc/kcore",
        "unshare -m true",
        "unshare -U true",
        "unshare -n true",
        // The same through clone: a new user namespace, mount namespace, network.
        "perl -e 'exit(syscall(56, 0x10000011, 0, 0, 0, 0) < 0)'",
        "perl -e 'exit(syscall(56, 0x00020011, 0, 0, 0, 0) < 0)'",
        "perl -e 'exit(syscall(56, 0x50000011, 0, 0, 0, 0) < 0)'",
        "chroot / true",
        "hostname other",
        "for fd in /proc/1/fd/*; do readlink $fd || exit 1; done",
        "cat /proc/1/fd/*",
        "readlink /proc/1/exe",
        "ls /proc/1/root/",
        "cat /proc/1/environ",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /sys/kernel/mm/ksm/run",
        "nsenter -t 1 -m true",
        "dmesg",
        "date -s 2001-01-01",
        "chown 1000 /tmp",
        "setpriv --reuid 1000 true",
        "echo -900 > /proc/self/oom_score_adj",
    ];
    let questions: Vec<String> = attempts
        .iter()
        .enumerate()
        .map(|(n, attempt)| format!("{n}: {attempt}; echo code $?"))
        .collect();
    let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
    let answers = ask(&machine, &runtime, &machine.script(""), &questions).await;
    for (n, attempt) in attempts.iter().enumerate() {
        let answer = &answers[&n.to_string()];
        assert!(
            !answer.ends_with("code 0") && !answer.contains("not found"),
            "{attempt}: {answer}"
        );
    }
    let allowed = [
        "0: touch /sandbox/x; echo code $?",
        "1: touch /tmp/x; echo code $?",
        "2: echo x > /dev/null; echo code $?",
    ];
    let answers = ask(&machine, &runtime, &machine.script(""), &allowed).await;
    assert!(answers.values().all(|answer| answer == "code 0"), "{answers:?}");
    machine.clean().await;
}

async fn hidden() {
    // Not below /tmp, which a container has of its own anyway.
    let place = tempfile::Builder::new()
        .prefix("muster-test")
        .tempdir_in("/var/tmp")
        .unwrap();
    let (secret, key) = (place.path().join("secret"), place.path().join("key"));
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("token"), "token").unwrap();
    fs::write(&key, "key").unwrap();
    fs::write(place.path().join("open"), "open").unwrap();
    let machine = Machine::new(Way::Isolated);
    let config = Config {
        hidden: vec![secret.clone(), key.clone()],
        state_dir: place.path().join("state"),
        ..machine.config.clone()
    };
    let runtime: Arc<dyn Runtime> = Arc::new(ProcessRuntime::new(config.clone()).unwrap());
    let (other, spec) = (
        ContainerId::new("other").unwrap(),
        machine.script("echo mine > /sandbox/file"),
    );
    runtime.create(&other, &spec).await.unwrap();
    runtime.start(&other).await.unwrap();
    exit(&runtime, &other).await;
    assert_eq!(
        fs::read_to_string(config.state_dir.join("containers/other/sandbox/file")).unwrap(),
        "mine\n"
    );
    let questions = [
        format!("open: cat {}/open", place.path().display()),
        format!("secret: ls -A {}", secret.display()),
        format!("key: cat {}", key.display()),
        format!("state: ls -A {}", config.state_dir.display()),
    ];
    let seen = ask(
        &machine,
        &runtime,
        &machine.script(""),
        &questions.each_ref().map(String::as_str),
    )
    .await;
    let of = |name: &str| seen[name].as_str();
    assert_eq!((of("open"), of("secret"), of("key"), of("state")), ("open", "", "", ""));
    runtime.remove(&other).await.unwrap();
    machine.clean().await;
}

async fn devices(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let questions = [
        "open: test -c /dev/fuse && exec 3<> /dev/fuse && echo opened",
        "tty: test -e /dev/tty0 || echo none",
    ];
    let mut spec = machine.script("");
    let without = ask(&machine, &runtime, &spec, &questions).await;
    assert!(!without["open"].contains("opened"), "{without:?}");
    spec.devices = vec![DeviceNode {
        path: "/dev/fuse".into(),
        host: None,
    }];
    let with = ask(&machine, &runtime, &spec, &questions).await;
    assert_eq!((with["open"].as_str(), with["tty"].as_str()), ("opened", "none"));
    // A node that comes in some other way is denied all the same.
    spec.devices.clear();
    spec.mounts = vec![Mount {
        source: "/dev/fuse".into(),
        target: "/sandbox/fuse".into(),
        read_only: false,
    }];
    let other = ask(
        &machine,
        &runtime,
        &spec,
        &["open: exec 3<> /sandbox/fuse && echo opened"],
    )
    .await;
    assert!(!other["open"].contains("opened"), "{other:?}");
    spec.mounts.clear();
    spec.devices = vec![DeviceNode {
        path: "/dev/no-such-device".into(),
        host: None,
    }];
    assert!(matches!(
        runtime.create(&ContainerId::new("a").unwrap(), &spec).await,
        Err(Error::Invalid(_))
    ));
    machine.clean().await;
}

async fn limits(way: Way) {
    let machine = Machine::new(way);
    let (runtime, id) = (machine.open(), ContainerId::new("a").unwrap());
    let mut spec = machine.command(&["sleep", "infinity"]);
    spec.limits.cpu_request_milli = 500;
    spec.limits.cpu_limit_milli = Some(1500);
    spec.limits.memory_bytes = Some(64 << 20);
    spec.limits.pids = Some(20);
    runtime.create(&id, &spec).await.unwrap();
    let directories = cgroup_directories(&format!("{}/a", machine.config.cgroup_parent));
    let read = |name: &str| {
        directories
            .iter()
            .find_map(|directory| fs::read_to_string(directory.join(name)).ok())
    };
    let value = |name: &str| read(name).map(|text| text.trim().to_owned());
    let bytes = (64 << 20).to_string();
    if directories.iter().any(|directory| directory.join("cpu.max").exists()) {
        assert_eq!(value("cpu.max").unwrap(), "150000 100000");
        assert_eq!(value("memory.max").unwrap(), bytes);
        assert_eq!(value("memory.swap.max").unwrap(), "0");
        assert_eq!(value("pids.max").unwrap(), "21");
    } else {
        assert_eq!(
            (
                value("cpu.cfs_quota_us").unwrap().as_str(),
                value("cpu.shares").unwrap().as_str()
            ),
            ("150000", "512")
        );
        assert_eq!(value("memory.limit_in_bytes").unwrap(), bytes);
        assert!(value("memory.memsw.limit_in_bytes").is_none_or(|limit| limit == bytes));
        assert_eq!(value("pids.max").unwrap(), "21", "and the init process");
        let rules = value("devices.list").unwrap();
        assert!(
            rules
                .lines()
                .all(|rule| rule.starts_with("c 1:") || rule.starts_with("c 5:") || rule.starts_with("c 136:")),
            "{rules}"
        );
        assert!(!rules.contains("c 5:1 "), "not the console: {rules}");
    }
    machine.clean().await;
}

async fn pids(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let mut spec = machine.script("for n in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; echo all");
    let (_, out, _) = machine.run(&runtime, &spec).await;
    assert_eq!(out, "all\n");
    spec.limits.pids = Some(5);
    let (exit, out, err) = machine.run(&runtime, &spec).await;
    assert!(
        out.is_empty() && err.contains("fork") && exit.code != Some(0),
        "{exit:?} {out} {err}"
    );
    machine.clean().await;
}

/// A small image: one static executable and names for it.
fn busybox(image: &Path) {
    fs::create_dir_all(image.join("bin")).unwrap();
    fs::copy("/bin/busybox", image.join("bin/busybox")).expect("apt-get install busybox-static");
    for name in ["sh", "cat", "ls", "echo", "touch", "tr", "id", "sleep"] {
        symlink("busybox", image.join("bin").join(name)).unwrap();
    }
    fs::create_dir_all(image.join("etc")).unwrap();
    fs::write(image.join("etc/name"), "image").unwrap();
    fs::set_permissions(image, fs::Permissions::from_mode(0o755)).unwrap();
}

async fn image(way: Way) {
    let image = tempfile::tempdir().unwrap();
    busybox(image.path());
    let machine = Machine::new(way);
    let runtime = machine.open();
    let spec = ContainerSpec {
        rootfs: Rootfs::Directory(image.path().into()),
        ..machine.script("")
    };
    let questions = [
        "before: cat /etc/name",
        "write: echo changed > /etc/name; cat /etc/name; touch /new /bin/new && echo ok",
        "host: ls /usr /root",
        "sandbox: echo x > /sandbox/file && cat /sandbox/file",
    ];
    for _ in 0..2 {
        let seen = ask(&machine, &runtime, &spec, &questions).await;
        assert_eq!(
            (
                seen["before"].as_str(),
                seen["write"].as_str(),
                seen["sandbox"].as_str()
            ),
            ("image", "changed ok", "x"),
            "{seen:?}"
        );
        assert!(seen["host"].contains("/usr: No such file"), "{seen:?}");
    }
    assert_eq!(fs::read_to_string(image.path().join("etc/name")).unwrap(), "image");
    let missing = ContainerSpec {
        rootfs: Rootfs::Directory("/no/such/image".into()),
        ..spec
    };
    assert!(matches!(
        runtime.create(&ContainerId::new("a").unwrap(), &missing).await,
        Err(Error::Invalid(_))
    ));
    machine.clean().await;
}

/// An image of the machine's own, `app:1`.
fn install(machine: &Machine) {
    let image = machine.config.images.root().join("app:1");
    fs::create_dir_all(&image).unwrap();
    busybox(&image.join("rootfs"));
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] },
        "config": { "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["sleep 1000"], "Env": ["A=image", "MUSTER_TEST=image"], "WorkingDir": "/etc", "User": "7:8" },
    });
    fs::write(image.join("image.json"), config.to_string()).unwrap();
}

async fn named_image(way: Way) {
    let machine = Machine::new(way);
    install(&machine);
    let runtime = machine.open();
    let of = |args: &[&str]| ContainerSpec {
        argv: Vec::new(),
        rootfs: Rootfs::Image {
            name: "app:1".to_owned(),
            args: args.iter().map(|word| (*word).to_owned()).collect(),
        },
        ..machine.script("")
    };
    let (ended, out, err) = machine
        .run(
            &runtime,
            &of(&["echo $A $PWD $(id -u) $(id -g); cat name; echo $MUSTER_TEST"]),
        )
        .await;
    assert_eq!(
        (ended.code, out.lines().next()),
        (Some(0), Some("image /etc 7 8")),
        "{ended:?} {err}"
    );
    assert!(!out.contains("MUSTER_TEST=image") && out.contains("image"), "{out}");

    let id = ContainerId::new("a").unwrap();
    runtime.create(&id, &of(&[])).await.unwrap();
    runtime.create(&id, &of(&[])).await.expect("the same again");
    runtime.start(&id).await.unwrap();
    let deleted = machine.config.images.delete("app:1");
    assert!(deleted.is_err_and(|error| error.to_string().contains("in use")));
    let kill = Stop {
        signal: 9,
        grace: Duration::ZERO,
    };
    runtime.stop(&id, kill).await.unwrap();
    exit(&runtime, &id).await;
    runtime.remove(&id).await.unwrap();
    machine.config.images.delete("app:1").expect("nobody uses it any more");
    let missing = runtime.create(&id, &of(&[])).await;
    assert!(matches!(missing, Err(Error::ImageNotFound(_))), "{missing:?}");
    machine.clean().await;
}

async fn mounts(way: Way) {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("file"), "data").unwrap();
    let machine = Machine::new(way);
    let runtime = machine.open();
    let mount = |target: &str, read_only| Mount {
        source: data.path().into(),
        target: target.into(),
        read_only,
    };
    let mut spec = machine.script("");
    spec.mounts = vec![mount("/sandbox/in", true), mount("/mnt", false)];
    let questions = [
        "read: cat /sandbox/in/file",
        "closed: touch /sandbox/in/x || echo closed",
        "open: touch /mnt/y && echo open",
    ];
    let seen = ask(&machine, &runtime, &spec, &questions).await;
    assert_eq!(
        (seen["read"].as_str(), seen["open"].as_str()),
        ("data", "open"),
        "{seen:?}"
    );
    assert!(seen["closed"].ends_with("closed"), "{seen:?}");
    assert!(data.path().join("y").exists() && !data.path().join("x").exists());
    spec.mounts = vec![Mount {
        source: "/no/such/source".into(),
        target: "/mnt".into(),
        read_only: true,
    }];
    assert!(matches!(
        runtime.create(&ContainerId::new("a").unwrap(), &spec).await,
        Err(Error::Invalid(_))
    ));
    machine.clean().await;
}

async fn memory(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let mut spec = machine.script("");
    let directory = |target: &str, bytes| MemoryDirectory {
        target: target.into(),
        bytes,
    };
    spec.limits.memory_bytes = Some(64 << 20);
    spec.memory = vec![directory("/scratch", Some(1 << 20)), directory("/sandbox/all", None)];
    let questions = [
        "empty: ls -A /scratch /sandbox/all",
        "kind: grep -c ' /scratch tmpfs ' /proc/mounts",
        "fits: head -c 1000000 /dev/zero > /scratch/a && echo fits",
        "full: head -c 1000000 /dev/zero > /scratch/b || echo full",
        "size: df -m /sandbox/all | tail -1 | tr -s ' ' | cut -d' ' -f2",
    ];
    let seen = ask(&machine, &runtime, &spec, &questions).await;
    assert_eq!(seen["empty"], "/sandbox/all:  /scratch:", "{seen:?}");
    assert_eq!(
        (seen["kind"].as_str(), seen["fits"].as_str()),
        ("1", "fits"),
        "{seen:?}"
    );
    assert!(seen["full"].ends_with("full"), "{seen:?}");
    assert_eq!(seen["size"], "64", "{seen:?}");
    machine.clean().await;
}

async fn nowhere(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let mut spec = machine.script("true");
    spec.memory = vec![MemoryDirectory {
        target: "/etc/muster-no-such/x".into(),
        bytes: None,
    }];
    let refused = runtime.create(&ContainerId::new("a").unwrap(), &spec).await;
    assert!(
        matches!(&refused, Err(Error::Invalid(why)) if why.contains("/etc/muster-no-such")),
        "{refused:?}"
    );
    assert!(!Path::new("/etc/muster-no-such").exists());
    machine.clean().await;
}

async fn variables(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = directory.path().join("variables");
    let secret = "s3cret\nof two lines";
    let many: String = (0..1000).map(|n| format!("MANY_{n}={n}\0")).collect();
    fs::write(
        &file,
        format!("PASSWORD={secret}\0GREETING=of the file\0EMPTY=\0{many}"),
    )
    .unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    let mut spec = machine
        .script("echo \"$PASSWORD|$GREETING|${EMPTY-unset}|$MANY_999|$HOME_IS\"; env | grep -c GREETING=; id -u");
    spec.env.insert("GREETING".to_owned(), "of the spec".to_owned());
    spec.env.insert("HOME_IS".to_owned(), "there".to_owned());
    spec.variables = Some(file);
    if nix::unistd::geteuid().is_root() {
        spec.user = Some(User {
            uid: 12_345,
            gid: 12_346,
        });
    }
    let id = ContainerId::new("run").unwrap();
    runtime.create(&id, &spec).await.unwrap();
    runtime.start(&id).await.unwrap();
    let ended = exit(&runtime, &id).await;
    let (out, err) = output(&runtime, &id).await;
    let user = spec.user.map_or(nix::unistd::geteuid().as_raw(), |user| user.uid);
    let want = format!("{secret}|of the file||999|there\n1\n{user}\n");
    assert_eq!((ended.code, out), (Some(0), want), "{err} {ended:?}");
    // The output aside, which is the command's own doing.
    let kept = std::process::Command::new("grep")
        .args(["-rl", "--exclude=log", "s3cret"])
        .arg(machine.directory(&id))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&kept.stdout), "");
    runtime.remove(&id).await.unwrap();
    machine.clean().await;
}

async fn isolation(way: Way) {
    let machine = Machine::new(way);
    let mut missing: Vec<String> = machine.open().isolation().missing.into_keys().collect();
    // With cgroup v2, devices are kept away by other means.
    missing.retain(|part| part != "devices");
    assert_eq!(missing, ["network", "users"]);
    machine.clean().await;
}

async fn refused() {
    let machine = Machine::new(Way::Plain);
    let (runtime, id) = (machine.open(), ContainerId::new("a").unwrap());
    let missing = runtime.isolation().missing;
    assert!(
        ["cgroups", "seccomp", "namespaces"]
            .iter()
            .all(|part| !missing[*part].is_empty()),
        "{missing:?}"
    );
    let mut image = machine.script("");
    image.rootfs = Rootfs::Directory("/usr".into());
    let mut mount = machine.script("");
    mount.mounts = vec![Mount {
        source: "/usr".into(),
        target: "/mnt".into(),
        read_only: true,
    }];
    let mut named = machine.script("");
    named.rootfs = Rootfs::Image {
        name: "app:1".to_owned(),
        args: Vec::new(),
    };
    for spec in [image, named, mount] {
        assert!(matches!(runtime.create(&id, &spec).await, Err(Error::Invalid(_))));
    }
    let questions = [
        "privileges: grep NoNewPrivs /proc/self/status | cut -f2",
        "cores: ulimit -c",
        // Of the ignored ones, 32 and 33 are the C library's own: they stay as they were.
        "signals: grep -E 'SigBlk|SigIgn' /proc/self/status | cut -f2 | sed 's/^00000001[08]/000000000/' | sort -u",
    ];
    let seen = ask(&machine, &runtime, &machine.script(""), &questions).await;
    assert_eq!(
        (
            seen["privileges"].as_str(),
            seen["cores"].as_str(),
            seen["signals"].as_str()
        ),
        ("1", "0", "0000000000000000")
    );
    machine.clean().await;
}

async fn environment(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let mut spec = machine.script("pwd; echo $HOME $MUSTER_SANDBOX; env | grep -cv -e MUSTER_ -e HOME -e PATH -e PWD -e SHLVL -e GREETING -e _=; echo $GREETING; command -v sleep");
    spec.env.insert("GREETING".to_owned(), "a b=c".to_owned());
    let (exit, out, err) = machine.run(&runtime, &spec).await;
    let sandbox = match machine.open().isolation().missing.contains_key("namespaces") {
        true => machine.directory(&ContainerId::new("run").unwrap()).join("sandbox"),
        false => "/sandbox".into(),
    };
    let sandbox = sandbox.display();
    let want = format!("{sandbox}\n{sandbox} {sandbox}\n0\na b=c\n/usr/bin/sleep\n");
    assert_eq!((exit.code, out), (Some(0), want), "{err}");
    machine.clean().await;
}

async fn trap(way: Way) {
    let machine = Machine::new(way);
    let (runtime, id) = (machine.open(), ContainerId::new("a").unwrap());
    let script = "trap 'echo bye; exit 7' TERM; echo ready; sleep 1000 & wait";
    runtime.create(&id, &machine.script(script)).await.unwrap();
    runtime.start(&id).await.unwrap();
    until("it traps", async || output(&runtime, &id).await.0.contains("ready")).await;
    runtime
        .stop(
            &id,
            Stop {
                signal: 15,
                grace: Duration::from_secs(60),
            },
        )
        .await
        .unwrap();
    let exit = exit(&runtime, &id).await;
    assert_eq!((exit.code, exit.signal), (Some(7), None));
    assert_eq!(output(&runtime, &id).await.0, "ready\nbye\n");
    machine.clean().await;
}

async fn real_time(way: Way) {
    let machine = Machine::new(way);
    let (runtime, id) = (machine.open(), ContainerId::new("a").unwrap());
    const REAL_TIME: i32 = 37;
    runtime.create(&id, &machine.command(&["sleep", "1000"])).await.unwrap();
    runtime.start(&id).await.unwrap();
    runtime
        .stop(
            &id,
            Stop {
                signal: REAL_TIME,
                grace: Duration::from_secs(60),
            },
        )
        .await
        .unwrap();
    assert_eq!(exit(&runtime, &id).await.signal, Some(REAL_TIME));
    machine.clean().await;
}

async fn no_directory(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let spec = ContainerSpec {
        working_dir: Some("/no/such/directory".into()),
        ..machine.script("true")
    };
    let (exit, _, _) = machine.run(&runtime, &spec).await;
    assert!(exit.code.is_none() && exit.error.is_some(), "{exit:?}");
    machine.clean().await;
}

async fn user(way: Way) {
    let machine = Machine::new(way);
    let runtime = machine.open();
    let me = nix::unistd::geteuid();
    let mut spec = machine.script("id -u; id -g; touch file && echo ok");
    let other = User {
        uid: 12_345,
        gid: 12_346,
    };
    spec.user = Some(other);
    if me.is_root() {
        let (exit, out, err) = machine.run(&runtime, &spec).await;
        assert_eq!((exit.code, out.as_str()), (Some(0), "12345\n12346\nok\n"), "{err}");
    } else {
        let refused = runtime.create(&ContainerId::new("a").unwrap(), &spec).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    }
    machine.clean().await;
}
