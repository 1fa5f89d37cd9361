//! Processes and what they have made, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::Pid;

use super::super::sys;

/// All processes below this one.
pub(super) fn descendants(root: Pid) -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![root.as_raw()];
    while let Some(pid) = open.pop() {
        let below = children.remove(&pid).unwrap_or_default();
        found.extend(below.iter().copied().map(Pid::from_raw));
        open.extend(below);
    }
    found
}

/// Sends a signal to all processes below this one, once; new ones may appear, so look again.
pub(super) fn signal_descendants(root: Pid, signal: i32) {
    for pid in descendants(root) {
        // Held before it is looked at again: its number may be another's since the list was made.
        if let Ok(held) = sys::hold(pid)
            && is_below(pid, root)
        {
            // It may have ended since.
            let _ = sys::kill_held(&held, signal);
        }
    }
}

fn is_below(pid: Pid, root: Pid) -> bool {
    let up = std::iter::successors(Some(pid.as_raw()), |pid| parent(*pid).filter(|parent| *parent > 0));
    up.skip(1).any(|pid| pid == root.as_raw())
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything: state, parent.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
