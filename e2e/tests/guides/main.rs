//! The guide of `manifests/deploy`, typed as it is written.
//!
//! Every block says on which hosts it is typed; the hosts are namespaces with an `/etc`, a `/var` and a `/usr/local/bin` of their own. Not
//! as on real ones: `systemctl` is the program beside this file, which starts what the units say; `scp` copies between the hosts'
//! directories; and `TOKEN` is what the block before printed, which a person would carry over.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use muster_e2e::lab::{Lab, remove_control_groups_of};
use muster_e2e::mctl_binary;

const HOSTS: [&str; 4] = ["host-1", "host-2", "host-3", "gpu-1"];
/// The agent's runtime on every host.
const RUNTIME: &str = "/var/lib/muster-agent/runtime";
/// How long a block may take, in seconds: what waits in one says when it gives up, and `until` does not.
const PATIENCE: &str = "150";
const SCP: &str = "#!/bin/sh\nset -e\nhost=${2%%:*}\ncp \"$1\" \"LAB/$host/root${2#*:}\"\n";
/// Gives a host what is its own; `$1` is its directory.
const OWN: &str = r#"
set -e
mkdir -p "$1/root/var/lib" "$1/root/var/tmp" "$1/root/var/log" "$1/root/usr/local/bin" "$1/root/run" "$1/work"
cp -a /etc "$1/root/etc"
mkdir -p "$1/root/etc/systemd/system"
cp "$2" "$1/root/usr/local/bin/systemctl"
cp "$1/scp" "$1/root/usr/local/bin/scp"
cp "$1/hosts" "$1/root/etc/hosts"
for place in etc var usr/local/bin run; do mount --bind "$1/root/$place" "/$place"; done
"#;

/// A block of commands and where it is typed.
struct Block {
    hosts: Vec<String>,
    text: String,
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/deploy")
}

fn blocks(guide: &str) -> Result<Vec<Block>> {
    let fenced = guide.split("\n```").skip(1).step_by(2);
    let block = |fenced: &str| {
        let (info, text) = fenced.split_once('\n').context("a block ends")?;
        let mut words = info.split_whitespace().map(str::to_owned);
        ensure!(
            words.next().as_deref() == Some("sh"),
            "a block that is no shell: {info}"
        );
        let hosts: Vec<String> = words.collect();
        let known = !hosts.is_empty() && hosts.iter().all(|host| HOSTS.contains(&host.as_str()));
        ensure!(known, "a block that is typed nowhere: {info}");
        Ok(Block {
            hosts,
            text: text.to_owned(),
        })
    };
    fenced.map(block).collect()
}

/// The hosts, and what has been typed on them that lasts.
struct Reader {
    lab: Lab,
    exported: BTreeMap<String, String>,
    printed: String,
    typed: usize,
}

impl Reader {
    fn new() -> Result<Reader> {
        ensure!(
            !Path::new(RUNTIME).exists(),
            "this machine has an agent of its own at {RUNTIME}, which would be in the way"
        );
        let mut lab = Lab::new()?;
        let program = lab.home().join("mctl");
        // Without what is for debuggers: every host gets a copy, several times.
        let stripped = Command::new("strip")
            .arg("-o")
            .arg(&program)
            .arg(mctl_binary())
            .status();
        if !stripped.is_ok_and(|status| status.success()) {
            fs::copy(mctl_binary(), &program)?;
        }
        let numbered = || HOSTS.iter().zip(10u8..);
        let names = numbered().map(|(name, number)| format!("10.0.0.{number} {name}\n"));
        let hosts = format!("127.0.0.1 localhost\n{}", names.collect::<String>());
        for (name, number) in numbered() {
            lab.add(name, number)?;
            let directory = lab.host(name).directory().to_owned();
            fs::write(directory.join("hosts"), &hosts)?;
            let scp = directory.join("scp");
            fs::write(&scp, SCP.replace("LAB", &lab.home().display().to_string()))?;
            fs::set_permissions(&scp, fs::Permissions::from_mode(0o755))?;
            let own = directory.display().to_string();
            lab.host(name)
                .run("sh", &["-c", OWN, "own", &own, env!("CARGO_BIN_EXE_systemctl")])?;
            let work = directory.join("work");
            for file in fs::read_dir(deploy())?.flatten() {
                fs::copy(file.path(), work.join(file.file_name()))?;
            }
            fs::hard_link(&program, work.join("mctl"))?;
        }
        Ok(Reader {
            lab,
            exported: BTreeMap::new(),
            printed: String::new(),
            typed: 0,
        })
    }

    fn block(&mut self, block: &Block) -> Result<()> {
        let token = self.printed.lines().last().unwrap_or_default().to_owned();
        ensure!(
            !block.text.contains("TOKEN") || token.starts_with("muster1."),
            "nothing printed the TOKEN of:\n{}",
            block.text
        );
        let text = block.text.replace("TOKEN", &token);
        for name in &block.hosts {
            let host = self.lab.host(name);
            let out = host.directory().join("printed");
            let exported = self.exported.entry(name.clone()).or_default();
            let script = format!(
                "set -e\n{exported}cd '{}'\nexec > '{}'\n{text}",
                host.directory().join("work").display(),
                out.display()
            );
            host.run(
                "env",
                &[
                    "-i",
                    "HOME=/var",
                    "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "timeout",
                    "--kill-after=5",
                    PATIENCE,
                    "sh",
                    "-c",
                    &script,
                ],
            )
            .with_context(|| format!("on {name}:\n{}", block.text))
            .map_err(|error| self.logs(error))?;
            let exports = text.lines().filter(|line| line.starts_with("export "));
            self.exported
                .entry(name.clone())
                .or_default()
                .extend(exports.map(|line| format!("{line}\n")));
            self.printed = fs::read_to_string(&out)?;
            println!("{name}: {}", self.printed.trim_end());
            self.typed += 1;
        }
        Ok(())
    }

    /// An error with the ends of all logs.
    fn logs(&self, error: anyhow::Error) -> anyhow::Error {
        let mut text = String::new();
        for name in HOSTS {
            let units = self.lab.host(name).directory().join("root/run/units");
            for file in fs::read_dir(units).into_iter().flatten().flatten() {
                if file.path().extension().is_some_and(|end| end == "log") {
                    let log = fs::read_to_string(file.path()).unwrap_or_default();
                    let tail: Vec<&str> = log.lines().rev().take(15).collect();
                    let tail: Vec<&str> = tail.into_iter().rev().collect();
                    text += &format!("--- {name} {}\n{}\n", file.file_name().display(), tail.join("\n"));
                }
            }
        }
        error.context(text)
    }
}

#[test]
fn the_guide_can_be_typed_from_its_beginning_to_its_end() {
    let guide = fs::read_to_string(deploy().join("README.md")).expect("the guide");
    let typed = || -> Result<usize> {
        let blocks = blocks(&guide)?;
        let mut reader = Reader::new()?;
        for block in &blocks {
            reader.block(block)?;
        }
        Ok(reader.typed)
    };
    // A thread of its own, because it moves into a network of its own.
    let ended = std::thread::scope(|scope| scope.spawn(typed).join());
    remove_control_groups_of(Path::new(RUNTIME));
    match ended {
        Ok(Ok(typed)) => assert!(typed > 25, "{typed}"),
        Ok(Err(error)) => panic!("{error:#}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
