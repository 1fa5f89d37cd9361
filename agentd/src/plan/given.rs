//! The part of a task's plan that is about what it takes from elsewhere: variables and directories.
//!
//! What is of a Secret never goes into the [`ContainerSpec`], which runtimes write down: variables go into a file in memory, files into a
//! directory there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use muster_api::v1::{KeyRef, Medium, Source, SourceFiles, SourceKind, Task, Volume};
use muster_runtime::{ContainerSpec, MemoryDirectory, Mount};

use super::{PlanInput, TaskPlan, earlier};
use crate::limits::{VARIABLES_BYTES, VARIABLES_MAX};
use crate::sources::{Data, Found, SourceKey};
use crate::volumes::{Content, Make, NewFile, Places, VARIABLES};

/// The permissions of files when a task does not say: any user in the container may read them.
const MODE: u32 = 0o644;

/// Why a container cannot be made yet, or at all.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Without {
    /// What it takes something from is being read; with why it could not be read so far.
    Reads(Option<String>),
    /// Something is not there: what, and what to do.
    Misses(String),
    /// This agent cannot give it.
    Refused(String),
}

/// Puts what the task takes from elsewhere into the container, and says what has to be made for that.
pub(super) fn give(
    input: &PlanInput<'_>,
    plan: &mut TaskPlan,
    task: &Task,
    attempt: u32,
    spec: &mut ContainerSpec,
) -> Result<Vec<Make>, Without> {
    let uid = task.metadata.uid.as_deref().unwrap_or_default();
    let data = sources(input, plan, task, task.spec.given())?;
    let case = Case {
        task,
        uid,
        attempt,
        places: input.places,
        data,
    };
    let mut makes = Vec::new();
    case.variables(spec, &mut makes)?;
    for (index, volume) in task.spec.volumes.iter().enumerate() {
        case.volume(index, volume, spec, &mut makes)?;
    }
    Ok(makes)
}

/// What these sources of a task hold; those that are not there are missing.
pub(super) fn sources(
    input: &PlanInput<'_>,
    plan: &mut TaskPlan,
    task: &Task,
    wanted: impl IntoIterator<Item = Source>,
) -> Result<BTreeMap<Source, Arc<Data>>, Without> {
    let mut here = BTreeMap::new();
    let mut without = None;
    let mut next: Option<Timestamp> = None;
    let mut count = 0;
    for source in wanted {
        count += 1;
        let key = SourceKey {
            namespace: task.namespace().to_owned(),
            source: source.clone(),
        };
        let seen = input.sources.get(&key);
        let fresh = seen.is_some_and(|seen| seen.next > input.now || seen.trouble.is_some());
        match seen.map(|seen| (&seen.found, &seen.trouble)) {
            Some((Found::Here(data), _)) if fresh => {
                here.insert(source, Arc::clone(data));
            }
            Some((Found::Absent, _)) => {}
            Some((Found::Unknown, Some(why))) => {
                without = Some(Without::Reads(Some(format!(
                    "{key} cannot be read, trying again: {why}"
                ))));
            }
            _ => without = without.or(Some(Without::Reads(None))),
        }
        if let Some(seen) = seen.filter(|seen| seen.next > input.now) {
            next = earlier(next, Some(seen.next));
        }
        plan.sources.insert(key);
    }
    if without.is_some() || here.len() < count {
        plan.wake = earlier(plan.wake, next);
    }
    without.map_or(Ok(here), Err)
}

struct Case<'a> {
    task: &'a Task,
    uid: &'a str,
    attempt: u32,
    places: &'a Places,
    data: BTreeMap<Source, Arc<Data>>,
}

impl Case<'_> {
    fn absent(&self, source: &Source) -> Without {
        Without::Misses(format!(
            "waits: the {source} is not in the namespace {}; create it, or say optional: true where the task names it",
            self.task.namespace()
        ))
    }

    fn no_key(&self, source: &Source, key: &str) -> Without {
        Without::Misses(format!(
            "waits: the {source} of the namespace {} has no key {key}; add it, or say optional: true where the task names it",
            self.task.namespace()
        ))
    }

    /// What an object holds; `None`: it is not there and need not be.
    fn whole(&self, source: &Source, optional: bool) -> Result<Option<&Data>, Without> {
        match self.data.get(source) {
            None if !optional => Err(self.absent(source)),
            found => Ok(found.map(|data| &**data)),
        }
    }

    fn key(&self, source: &Source, key: &KeyRef) -> Result<Option<&Content>, Without> {
        let Some(data) = self.whole(source, key.optional)? else {
            return Ok(None);
        };
        match data.get(&key.key) {
            None if !key.optional => Err(self.no_key(source, &key.key)),
            found => Ok(found),
        }
    }

    /// All variables from elsewhere, each with where it is from.
    fn found(&self) -> Result<BTreeMap<String, (Source, String, &Content)>, Without> {
        let mut found = BTreeMap::new();
        for from in &self.task.spec.env_from {
            let Some((source, optional)) = from.source() else {
                continue;
            };
            for (key, value) in self.whole(&source, optional)?.into_iter().flatten() {
                let name = format!("{}{key}", from.prefix);
                found.insert(name, (source.clone(), key.clone(), value));
            }
        }
        for var in &self.task.spec.env {
            let Some((source, key)) = var.value_from.as_ref().and_then(|from| from.key()) else {
                continue;
            };
            if let Some(value) = self.key(&source, key)? {
                found.insert(var.name.clone(), (source, key.key.clone(), value));
            }
        }
        Ok(found)
    }

    /// Plain values go with the others, secret ones into a file in memory.
    fn variables(&self, spec: &mut ContainerSpec, makes: &mut Vec<Make>) -> Result<(), Without> {
        let mut found = self.found()?;
        // What the task says itself, and what Muster promises, wins.
        found.retain(|name, _| !spec.env.contains_key(name));
        let bytes = |name: &str, value: &Content| name.len() + value.bytes().len() + 2;
        let size: usize = found.iter().map(|(name, (_, _, value))| bytes(name, value)).sum();
        if found.len() > VARIABLES_MAX || size > VARIABLES_BYTES {
            return Err(Without::Refused(format!(
                "the task takes {} variables of {size} bytes in all from elsewhere: no more than {VARIABLES_MAX} of {VARIABLES_BYTES} bytes \
                 are possible; take them as files",
                found.len()
            )));
        }
        let mut closed = Vec::new();
        for (name, (source, key, value)) in found {
            if value.bytes().contains(&0) {
                return Err(Without::Misses(format!(
                    "waits: the key {key} of the {source} holds a NUL byte, which no variable can; take it as a file"
                )));
            }
            match (source.kind, std::str::from_utf8(value.bytes())) {
                (SourceKind::ConfigMap, Ok(text)) => drop(spec.env.insert(name, text.to_owned())),
                _ => {
                    closed.extend_from_slice(name.as_bytes());
                    closed.push(b'=');
                    closed.extend_from_slice(value.bytes());
                    closed.push(0);
                }
            }
        }
        if closed.is_empty() {
            return Ok(());
        }
        let at = self.in_memory()?.join(VARIABLES);
        spec.variables = Some(at.join(VARIABLES));
        makes.push(Make::Files {
            at,
            files: vec![NewFile {
                path: VARIABLES.into(),
                mode: 0o444,
                content: closed.into(),
            }],
            owner: None,
        });
        Ok(())
    }

    fn in_memory(&self) -> Result<PathBuf, Without> {
        let place = self.places.attempt(self.uid, self.attempt);
        place.ok_or_else(|| {
            let why = "this agent has no file system in memory that secrets could be on: neither /run nor /dev/shm is a tmpfs";
            Without::Refused(why.to_owned())
        })
    }

    fn volume(
        &self,
        index: usize,
        volume: &Volume,
        spec: &mut ContainerSpec,
        makes: &mut Vec<Make>,
    ) -> Result<(), Without> {
        let target = PathBuf::from(&volume.mount_path);
        let no_disk = || Without::Refused("this agent keeps no directories for tasks".to_owned());
        let mut bind = |source: PathBuf, read_only| {
            let target = target.clone();
            spec.mounts.push(Mount {
                source,
                target,
                read_only,
            });
        };
        if let Some((source, files)) = volume.files() {
            let at = self.in_memory()?.join(index.to_string());
            bind(at.clone(), true);
            let files = self.files(&source, files)?;
            let owner = spec.user;
            makes.push(Make::Files { at, files, owner });
        } else if let Some(empty) = &volume.empty_dir {
            if empty.medium == Medium::Memory {
                let bytes = empty.size_limit.map(|size| size.bytes());
                spec.memory.push(MemoryDirectory { target, bytes });
                return Ok(());
            }
            let at = self.places.empty(self.uid, index).ok_or_else(no_disk)?;
            bind(at.clone(), volume.read_only);
            makes.push(Make::Directory(at));
        } else if let Some(host) = &volume.host_path {
            let at = PathBuf::from(&host.path);
            if !self.places.allows(&at) {
                return Err(Without::Refused(format!(
                    "the agent does not let tasks see {} of its machine: it has to be started with --allow-host-path {}",
                    at.display(),
                    at.parent().unwrap_or(Path::new("/")).display()
                )));
            }
            bind(at.clone(), volume.read_only);
            let kind = host.kind;
            makes.push(Make::Host { at, kind });
        } else if let Some(shared) = &volume.shared {
            let at = self.places.shared(self.task.namespace(), &shared.name);
            let at = at.ok_or_else(no_disk)?;
            bind(at.clone(), volume.read_only);
            makes.push(Make::Directory(at));
        }
        Ok(())
    }

    fn files(&self, source: &Source, wanted: &SourceFiles) -> Result<Vec<NewFile>, Without> {
        let Some(data) = self.whole(source, wanted.optional)? else {
            return Ok(Vec::new());
        };
        let mode = wanted.default_mode.unwrap_or(MODE);
        if wanted.items.is_empty() {
            let files = data.iter().map(|(key, content)| NewFile {
                path: key.into(),
                mode,
                content: content.clone(),
            });
            return Ok(files.collect());
        }
        let mut files = Vec::new();
        let mut taken = BTreeSet::new();
        for item in &wanted.items {
            match data.get(&item.key) {
                None if wanted.optional => {}
                None => return Err(self.no_key(source, &item.key)),
                Some(content) if taken.insert(&item.path) => files.push(NewFile {
                    path: item.path.clone().into(),
                    mode: item.mode.unwrap_or(mode),
                    content: content.clone(),
                }),
                Some(_) => {}
            }
        }
        Ok(files)
    }
}
