//! What a guide needs of systemctl, where there is no systemd: it starts what a unit of `/etc/systemd/system` says, as the unit says.
//!
//! Known are `ExecStart`, `EnvironmentFile`, `User`, `StateDirectory` and `LogsDirectory` with their modes, and `Type=notify`; what confines a unit is left out, and
//! nothing is restarted that has ended. A setting that is not known either way is a failure, so that no unit says what is not tested.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown};

/// As systemd by default.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where processes and what they print are noted.
const NOTES: &str = "/run/units";
/// What only confines, orders or repeats.
const LEFT_OUT: &str = "Description Wants After StartLimitIntervalSec Group UMask LimitNOFILE Restart RestartSec TimeoutStopSec \
    NoNewPrivileges CapabilityBoundingSet AmbientCapabilities ProtectSystem ProtectHome PrivateTmp PrivateDevices ProtectClock \
    ProtectControlGroups ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables RestrictAddressFamilies \
    RestrictNamespaces RestrictRealtime RestrictSUIDSGID LockPersonality MemoryDenyWriteExecute RemoveIPC SystemCallArchitectures \
    SystemCallFilter SystemCallErrorNumber WantedBy KillMode Delegate TasksMax OOMPolicy OOMScoreAdjust";
const KNOWN: &str =
    "ExecStart EnvironmentFile User StateDirectory StateDirectoryMode LogsDirectory LogsDirectoryMode Type";

fn main() -> Result<()> {
    let (flags, words): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let flag = |name: &str| flags.iter().any(|flag| flag == name);
    let (verb, units) = words.split_first().context("what is to be done?")?;
    fs::create_dir_all(NOTES)?;
    for unit in units {
        let unit = Unit::read(unit.trim_end_matches(".service"))?;
        match verb.as_str() {
            "enable" if !flag("--now") => {}
            "enable" | "start" => unit.start(!flag("--no-block"))?,
            "stop" => unit.stop()?,
            "restart" => {
                unit.stop()?;
                unit.start(true)?;
            }
            other => bail!("systemctl {other} is not known here"),
        }
    }
    ensure!(
        !units.is_empty() || verb == "daemon-reload",
        "systemctl {verb}: which unit?"
    );
    Ok(())
}

struct Unit {
    name: String,
    settings: BTreeMap<String, String>,
}

/// Names and values of the lines of a file, without comments and sections.
fn settings(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(['#', '[']));
    let pair = |line: &str| {
        let (name, value) = line
            .split_once('=')
            .with_context(|| format!("{}: {line}", path.display()))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    lines.map(pair).collect()
}

impl Unit {
    fn read(name: &str) -> Result<Unit> {
        let settings = settings(&Path::new("/etc/systemd/system").join(format!("{name}.service")))?;
        for setting in settings.keys() {
            let mut known = KNOWN.split_whitespace().chain(LEFT_OUT.split_whitespace());
            let known = known.any(|known| known == setting);
            ensure!(known, "{name}: {setting} is not known here");
        }
        Ok(Unit {
            name: name.to_owned(),
            settings,
        })
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    fn note(&self, end: &str) -> PathBuf {
        Path::new(NOTES).join(format!("{}.{end}", self.name))
    }

    /// Its process, if it runs.
    fn running(&self) -> Option<Pid> {
        let pid: i32 = fs::read_to_string(self.note("pid")).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // One that has ended and was not fetched yet does not run.
        let ended = stat.rsplit(") ").next()?.starts_with('Z');
        (!ended).then_some(Pid::from_raw(pid))
    }

    fn start(&self, wait: bool) -> Result<()> {
        if self.running().is_some() {
            return Ok(());
        }
        let environment = self
            .setting("EnvironmentFile")
            .map_or_else(|| Ok(BTreeMap::new()), |file| settings(Path::new(file)))?;
        let words = words(self.setting("ExecStart").context("no ExecStart")?, &environment);
        let (program, arguments) = words.split_first().context("an empty ExecStart")?;
        let user = self.setting("User").unwrap_or("root");
        let user = User::from_name(user)?.with_context(|| format!("there is no user {user}"))?;
        for (setting, place) in [("StateDirectory", "/var/lib"), ("LogsDirectory", "/var/log")] {
            let Some(name) = self.setting(setting) else { continue };
            let directory = Path::new(place).join(name);
            fs::create_dir_all(&directory)?;
            let mode = self.setting(&format!("{setting}Mode")).unwrap_or("0755");
            let mode = u32::from_str_radix(mode, 8)?;
            fs::set_permissions(&directory, Permissions::from_mode(mode))?;
            chown(&directory, Some(user.uid), Some(user.gid))?;
        }
        let log = File::options().create(true).append(true).open(self.note("log"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &user.dir)
            .envs(&environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw());
        let notify = self.note("notify");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify)?;
        fs::set_permissions(&notify, Permissions::from_mode(0o777))?;
        let notifies = self.setting("Type") == Some("notify");
        if notifies {
            command.env("NOTIFY_SOCKET", &notify);
        }
        let mut process = command.spawn().with_context(|| format!("{}: {program}", self.name))?;
        fs::write(self.note("pid"), process.id().to_string())?;
        if !(wait && notifies) {
            return Ok(());
        }
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let began = Instant::now();
        loop {
            let mut text = [0; 4096];
            let said = socket
                .recv(&mut text)
                .map(|count| String::from_utf8_lossy(&text[..count]).into_owned());
            if said.is_ok_and(|said| said.lines().any(|line| line == "READY=1")) {
                return Ok(());
            }
            if process.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.note("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                bail!(
                    "{} is not ready:\n{}",
                    self.name,
                    tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                );
            }
        }
    }

    fn stop(&self) -> Result<()> {
        let Some(pid) = self.running() else { return Ok(()) };
        kill(pid, Signal::SIGTERM)?;
        let began = Instant::now();
        while self.running().is_some() {
            ensure!(began.elapsed() < PATIENCE, "{} does not stop", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// The words of a command: `${NAME}` is a part of one, `$NAME` alone as many as there are in it.
fn words(line: &str, environment: &BTreeMap<String, String>) -> Vec<String> {
    let mut all = Vec::new();
    for word in line.split_whitespace() {
        if let Some(value) = word.strip_prefix('$').filter(|name| !name.starts_with('{')) {
            let value = environment.get(value).map_or("", String::as_str);
            all.extend(value.split_whitespace().map(str::to_owned));
            continue;
        }
        let mut word = word.to_owned();
        for (name, value) in environment {
            word = word.replace(&format!("${{{name}}}"), value);
        }
        all.push(word);
    }
    all
}
