//! Machines out of namespaces: each host has a network, a process table and mounts of its own; a switch joins them.
//!
//! The switch is a network namespace that the scenario's thread lives in, so a test reaches every host by its address, and neither
//! names nor addresses can meet those of another scenario or of the machine. A host lives as long as its first process, which the
//! kernel ends with the thread that made it, and everything on the host with it: nothing is left behind even by a test that is
//! killed. What the kernel does not take back (directories, control groups) carries the number of the process that made it, and the
//! next scenario sweeps what dead ones have left.
//!
//! What must never happen here: a change of the machine's own network, or a signal to a process of another owner.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::process::{self, Process, children, parent, signal, wait_for};

/// What the directories of all scenarios begin with.
const PREFIX: &str = "muster-lab-";
/// Where the switch itself, and so the test, is reached.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Reaps whatever loses its parent, for ever: the first process of a host.
const FIRST_PROCESS: &str = "while :; do sleep 86400 & wait; done";

/// A switch with hosts.
#[derive(Debug)]
pub struct Lab {
    home: tempfile::TempDir,
    fast: tempfile::TempDir,
    hosts: BTreeMap<String, Host>,
}

/// A machine.
#[derive(Debug)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its only address besides loopback.
    pub address: Ipv4Addr,
    /// What holds its namespaces.
    keeper: Child,
    /// Its first process, as seen from outside.
    first: Pid,
    boots: u32,
    directory: PathBuf,
}

impl Lab {
    /// Makes a switch and moves this thread, and what it starts from now on, onto it.
    ///
    /// # Errors
    /// When this is not root's, or a tool is missing; the text says what to install.
    pub fn new() -> Result<Lab> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "scenarios make network namespaces: run the tests as root"
        );
        sweep();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let directory = |parent: &Path| tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
        let memory = Path::new("/dev/shm");
        let lab = Lab {
            home: directory(&std::env::temp_dir())?,
            // Without a disk in memory the scenarios still hold; they only take longer.
            fast: directory(memory).or_else(|_| directory(&std::env::temp_dir()))?,
            hosts: BTreeMap::new(),
        };
        unshare(CloneFlags::CLONE_NEWNET).context("this thread cannot have a network of its own")?;
        for line in [
            "link set lo up".to_owned(),
            // Its own address, or it would take another whenever a host comes or goes.
            format!("link add switch address {} type bridge", hardware(OUTSIDE)),
            format!("addr add {OUTSIDE}/24 dev switch"),
            "link set switch up".to_owned(),
        ] {
            run(Command::new("ip").args(line.split(' ')), "iproute2")?;
        }
        Ok(lab)
    }

    /// Where the scenario keeps everything that may lie on a disk.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Where it keeps what should not wait for a disk.
    pub fn fast(&self) -> &Path {
        self.fast.path()
    }

    /// Adds a host, reached at `10.0.0.<number>`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&mut self, name: &str, number: u8) -> Result<()> {
        let address = Ipv4Addr::new(10, 0, 0, number);
        let directory = self.home().join(name);
        fs::create_dir_all(&directory)?;
        let host = Host::boot(name, address, directory, 1)?;
        ensure!(
            self.hosts.insert(name.to_owned(), host).is_none(),
            "{name} is there already"
        );
        Ok(())
    }

    /// A host that was added.
    #[track_caller]
    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .get(name)
            .unwrap_or_else(|| panic!("there is no host {name}"))
    }

    /// Turns a host off and on: every process is gone, files stay, and the machine has another boot id.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reboot(&mut self, name: &str) -> Result<()> {
        let old = self.hosts.remove(name).context("there is no such host")?;
        let (address, directory, boots) = (old.address, old.directory.clone(), old.boots);
        drop(old);
        let host = Host::boot(name, address, directory, boots + 1)?;
        self.hosts.insert(name.to_owned(), host);
        Ok(())
    }

    /// Nothing that `from` sends reaches `to` any more; the other direction is left as it is.
    ///
    /// # Errors
    /// When the rule cannot be made.
    pub fn cut(&self, from: &str, to: &str) -> Result<()> {
        let source = self.host(from).address;
        self.host(to)
            .filter(&["-A", "INPUT", "-s", &source.to_string(), "-j", "DROP"])
    }

    /// Nothing passes between any host of `left` and any of `right`.
    ///
    /// # Errors
    /// When a rule cannot be made.
    pub fn partition(&self, left: &[&str], right: &[&str]) -> Result<()> {
        for a in left {
            for b in right {
                self.cut(a, b)?;
                self.cut(b, a)?;
            }
        }
        Ok(())
    }

    /// Takes such a cut back.
    ///
    /// # Errors
    /// When there is none.
    pub fn mend(&self, from: &str, to: &str) -> Result<()> {
        let source = self.host(from).address;
        self.host(to)
            .filter(&["-D", "INPUT", "-s", &source.to_string(), "-j", "DROP"])
    }

    /// Takes all cuts of all hosts back, and says how many packets they have held up.
    ///
    /// # Errors
    /// When the rules cannot be read or removed.
    pub fn heal(&self) -> Result<u64> {
        let mut dropped = 0;
        for host in self.hosts.values() {
            dropped += host.dropped()?;
            host.filter(&["-F", "INPUT"])?;
        }
        Ok(dropped)
    }
}

impl Host {
    fn boot(name: &str, address: Ipv4Addr, directory: PathBuf, boots: u32) -> Result<Host> {
        let keeper = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare"])
            .args([
                "--net",
                "--pid",
                "--mount",
                "--uts",
                "--ipc",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .args(["busybox", "sh", "-c", FIRST_PROCESS])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot run setpriv and unshare (apt-get install util-linux)")?;
        let keeper_pid = Pid::from_raw(i32::try_from(keeper.id())?);
        let mut host = Host {
            name: name.to_owned(),
            address,
            keeper,
            first: keeper_pid,
            boots,
            directory,
        };
        let mounted =
            |pid: Pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with("busybox"));
        wait_for(&format!("the first process of {name}"), || {
            host.first = *children(keeper_pid).first()?;
            mounted(host.first).then_some(())
        })?;
        host.connect()?;
        host.name_itself()?;
        Ok(host)
    }

    fn connect(&self) -> Result<()> {
        let (end, pid) = (format!("v-{}", self.address.octets()[3]), self.first.to_string());
        // After a boot the old end may still be on its way out.
        let _ = Command::new("ip")
            .args(["link", "del", &end])
            .stderr(Stdio::null())
            .status();
        let address = hardware(self.address);
        for line in [
            format!("link add {end} type veth peer name eth0 address {address} netns {pid}"),
            format!("link set {end} master switch up"),
        ] {
            run(Command::new("ip").args(line.split(' ')), "iproute2")?;
        }
        for line in [
            "link set lo up".to_owned(),
            format!("addr add {}/24 dev eth0", self.address),
            "link set eth0 up".to_owned(),
            format!("route add default via {OUTSIDE}"),
        ] {
            run(self.enter(&["--net"]).arg("ip").args(line.split(' ')), "iproute2")?;
        }
        Ok(())
    }

    /// A host name, a machine id and a boot id of its own.
    fn name_itself(&self) -> Result<()> {
        run(self.enter(&["--uts"]).args(["hostname", &self.name]), "hostname")?;
        let boot = format!("{:08x}-0000-4000-8000-{:012x}", self.boots, u32::from(self.address));
        let machine = format!("{:032x}", u32::from(self.address));
        for (name, text, path) in [
            ("boot_id", boot, "/proc/sys/kernel/random/boot_id"),
            ("machine-id", machine, "/etc/machine-id"),
        ] {
            let file = self.directory.join(name);
            if !file.exists() || name == "boot_id" {
                fs::write(&file, text + "\n")?;
            }
            if Path::new(path).exists() {
                run(
                    self.enter(&["--mount", "--pid"])
                        .args(["mount", "--bind"])
                        .args([&file, Path::new(path)]),
                    "mount",
                )?;
            }
        }
        Ok(())
    }

    /// A command of the host, or of some of its namespaces.
    fn enter(&self, namespaces: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first.to_string()])
            .args(namespaces)
            .arg("--");
        command
    }

    /// Where the host keeps its files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a command on the host; what it prints goes to `<name>.log` in the host's directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, program: &Path, args: &[String], env: &[(&str, &str)]) -> Result<Process> {
        let mut command = self.enter(&["--net", "--pid", "--mount", "--uts", "--ipc"]);
        command.arg(program).args(args);
        for variable in [
            "MUSTER_CONFIG",
            "MUSTER_LOG",
            "KUBECONFIG",
            "XDG_DATA_HOME",
            "XDG_CONFIG_HOME",
        ] {
            command.env_remove(variable);
        }
        command
            .env("HOME", &self.directory)
            .env("RUST_BACKTRACE", "1")
            .env("NO_COLOR", "1");
        command.envs(env.iter().copied()).current_dir(&self.directory);
        let log = self.directory.join(format!("{name}.log"));
        Process::spawn(&format!("{}/{name}", self.name), command, &log)
    }

    /// Runs a command on the host to its end.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = self.enter(&["--net", "--pid", "--mount", "--uts", "--ipc"]);
        run(command.arg(program).args(args), program)
    }

    /// Changes the host's packet filter.
    fn filter(&self, args: &[&str]) -> Result<()> {
        run(
            self.enter(&["--net"]).args(["iptables", "-w", "10"]).args(args),
            "iptables",
        )
        .map(drop)
    }

    /// How many packets its filter has dropped.
    fn dropped(&self) -> Result<u64> {
        let list = ["iptables", "-w", "10", "-L", "INPUT", "-v", "-x", "-n"];
        let text = run(self.enter(&["--net"]).args(list), "iptables")?;
        let lines = text.lines().filter(|line| line.contains("DROP"));
        Ok(lines
            .filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .sum())
    }

    /// Nothing from this address reaches the host any more.
    ///
    /// # Errors
    /// When the rule cannot be made.
    pub fn refuse(&self, source: Ipv4Addr) -> Result<()> {
        self.filter(&["-A", "INPUT", "-s", &source.to_string(), "-j", "DROP"])
    }

    /// Of the packets that reach the host, this part is lost, at random.
    ///
    /// # Errors
    /// When the rule cannot be made.
    pub fn lose(&self, part: f32) -> Result<()> {
        let part = part.to_string();
        let rule = [
            "-A",
            "INPUT",
            "-i",
            "eth0",
            "-m",
            "statistic",
            "--mode",
            "random",
            "--probability",
            &part,
        ];
        self.filter(&[rule.as_slice(), &["-j", "DROP"]].concat())
    }

    /// Resets every connection of the host to this address.
    ///
    /// # Errors
    /// When `ss` is missing.
    pub fn reset_connections(&self, peer: Ipv4Addr) -> Result<usize> {
        let killed = run(
            self.enter(&["--net"])
                .args(["ss", "-K", "-H", "-t", "dst", &peer.to_string()]),
            "iproute2",
        )?;
        Ok(killed.lines().count())
    }

    /// Everything that runs on the host, its first process left out.
    pub fn processes(&self) -> Vec<Pid> {
        let own = process_space(self.first);
        let inside = |pid: &Pid| {
            let mut at = Some(*pid);
            // Containers have process tables of their own, below the host's.
            std::iter::from_fn(|| {
                let here = at?;
                at = parent(here).filter(|parent| parent.as_raw() > 1);
                Some(here)
            })
            .any(|pid| process_space(pid) == own)
        };
        process::all().filter(|pid| *pid != self.first && inside(pid)).collect()
    }

    /// Sends a signal to everything on the host, as if the machine itself were stopped or went on.
    pub fn signal_all(&self, what: Signal) {
        for pid in self.processes() {
            // Some have ended since they were listed.
            let _ = signal(pid, what);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = signal(self.first, Signal::SIGKILL);
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        remove_control_groups(&self.directory);
    }
}

/// The address of a host's network card: the same after a reboot.
fn hardware(address: Ipv4Addr) -> String {
    format!("02:00:00:00:00:{:02x}", address.octets()[3])
}

/// Which process table a process is in.
fn process_space(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// Runs a command to its end; its output, or an error with everything it said.
pub(crate) fn run(command: &mut Command, package: &str) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {command:?} (apt-get install {package})"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes what scenarios have left whose process is gone.
fn sweep() {
    for parent in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            let Some(owner) = owner.and_then(|owner| owner.parse::<i32>().ok()) else {
                continue;
            };
            if !Path::new(&format!("/proc/{owner}")).exists() {
                for host in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                    remove_control_groups(&host.path());
                }
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Removes the control groups of the agents that kept their data in a host's directory.
fn remove_control_groups(directory: &Path) {
    let agents = fs::read_dir(directory).into_iter().flatten().flatten();
    agents
        .map(|entry| entry.path().join("runtime"))
        .filter(|path| path.exists())
        .for_each(|runtime| remove_control_groups_of(&runtime));
}

/// Removes the control groups of a runtime. They are named after the hash (FNV-1a) of its directory; the kernel refuses to remove one
/// that something is in.
pub fn remove_control_groups_of(runtime: &Path) {
    let bytes = runtime.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    for tree in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        remove_tree(&tree.path().join("muster").join(format!("{hash:016x}")));
    }
    remove_tree(&Path::new("/sys/fs/cgroup/muster").join(format!("{hash:016x}")));
}

fn remove_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
