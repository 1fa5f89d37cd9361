//! What tasks take from elsewhere, rule by rule.

use std::path::Path;

use jiff::Timestamp;
use muster_api::quantity::ByteSize;
use muster_api::task_state::Phase;
use muster_api::v1::{
    EmptyDir, EnvFrom, EnvSource, EnvVar, FieldRef, FileItem, HostPath, KeyRef, Medium, RestartPolicy, SharedDir,
    Source, SourceFiles, SourceRef, Task, TaskReason, Volume,
};
use muster_runtime::{ContainerSpec, MemoryDirectory};

use super::Action;
use super::testing::{START_MS, Scene, exit, said};
use crate::sources::{Data, Found, Seen};
use crate::volumes::{Make, Places};

const STARTING: Option<(Phase, TaskReason)> = Some((Phase::Starting, TaskReason::Preparing));
const MISSING: Option<(Phase, TaskReason)> = Some((Phase::Starting, TaskReason::ConfigMissing));

fn key_ref(name: &str, key: &str, optional: bool) -> Option<KeyRef> {
    Some(KeyRef {
        name: name.to_owned(),
        key: key.to_owned(),
        optional,
    })
}

fn secret_var(variable: &str, name: &str, key: &str, optional: bool) -> EnvVar {
    EnvVar {
        value_from: Some(EnvSource {
            secret_key_ref: key_ref(name, key, optional),
            ..EnvSource::default()
        }),
        ..EnvVar::of(variable, "")
    }
}

fn all_of(source: &Source, prefix: &str) -> EnvFrom {
    let found = Some(SourceRef {
        name: source.name.clone(),
        optional: false,
    });
    let secret = *source == Source::secret(&source.name);
    EnvFrom {
        prefix: prefix.to_owned(),
        secret_ref: found.clone().filter(|_| secret),
        config_map_ref: found.filter(|_| !secret),
    }
}

fn files(name: &str, items: &[(&str, &str)], optional: bool) -> Volume {
    Volume {
        mount_path: "/files".to_owned(),
        secret: Some(SourceFiles {
            name: name.to_owned(),
            items: items
                .iter()
                .map(|(key, path)| FileItem {
                    key: (*key).to_owned(),
                    path: (*path).to_owned(),
                    mode: None,
                })
                .collect(),
            default_mode: Some(0o400),
            optional,
        }),
        ..Volume::default()
    }
}

impl Scene {
    fn holds(self, source: Source, data: &[(&str, &str)]) -> Scene {
        let data: Data = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec().into()))
            .collect();
        let seen = Seen::new(Found::Here(data.into()), in_ms(60_000));
        self.knows(source, seen)
    }

    fn lacks(self, source: Source) -> Scene {
        self.knows(source, Seen::new(Found::Absent, in_ms(60_000)))
    }
}

fn in_ms(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(START_MS + ms).expect("in range")
}

/// What is made, with what for.
fn created(scene: &Scene) -> (ContainerSpec, Vec<Make>) {
    let plan = scene.check(&["create 1"], STARTING);
    match plan.actions.into_values().flatten().next() {
        Some(Action::Create { spec, makes, .. }) => (*spec, makes),
        other => panic!("{other:?}"),
    }
}

/// The bytes of the file of variables.
fn variables(makes: &[Make]) -> String {
    let file = makes.iter().find_map(|make| match make {
        Make::Files { at, files, .. } if at.ends_with("variables") => files.first(),
        _ => None,
    });
    let file = file.map_or(&[] as &[u8], |file| file.content.bytes());
    String::from_utf8(file.to_vec()).expect("text")
}

#[test]
fn a_task_waits_until_what_it_names_was_read() {
    let task = |task: &mut Task| task.spec.env = vec![secret_var("PASSWORD", "db", "password", false)];
    let scene = Scene::of(task);
    let plan = scene.check(&[], STARTING);
    assert_eq!(plan.sources.len(), 1);
    let scene = scene.lacks(Source::secret("db"));
    let plan = scene.check(&[], MISSING);
    let message = &said(&plan).expect("said").message;
    assert!(
        message.contains("Secret db") && message.contains("create it"),
        "{message}"
    );
    assert_eq!(plan.wake, Some(in_ms(60_000)), "looked for again");
    let plan = scene.holds(Source::secret("db"), &[("user", "x")]).check(&[], MISSING);
    let message = &said(&plan).expect("said").message;
    assert!(message.contains("no key password"), "{message}");
    let trouble = Seen {
        trouble: Some("no answer".to_owned()),
        ..Seen::new(Found::Unknown, in_ms(60_000))
    };
    let plan = Scene::of(task)
        .knows(Source::secret("db"), trouble)
        .check(&[], STARTING);
    assert!(said(&plan).expect("said").message.contains("no answer"));
}

#[test]
fn what_is_old_is_read_again_but_counts_while_nobody_answers() {
    let task = |task: &mut Task| task.spec.env = vec![secret_var("PASSWORD", "db", "password", false)];
    let data: Data = [("password".to_owned(), b"s3cret".to_vec().into())].into();
    let old = Seen::new(Found::Here(data.into()), in_ms(0));
    let plan = Scene::of(task)
        .knows(Source::secret("db"), old.clone())
        .check(&[], STARTING);
    assert_eq!(plan.sources.len(), 1);
    let unreachable = Seen {
        trouble: Some("no answer".to_owned()),
        ..old
    };
    Scene::of(task)
        .knows(Source::secret("db"), unreachable)
        .check(&["create 1"], STARTING);
}

#[test]
fn secret_variables_are_in_memory_and_nowhere_else() {
    let scene = Scene::of(|task| {
        task.spec.env_from = vec![
            all_of(&Source::config_map("app"), ""),
            all_of(&Source::secret("db"), "DB_"),
        ];
        task.spec.env = vec![
            EnvVar::of("MODE", "mine"),
            secret_var("PASSWORD", "db", "password", false),
            secret_var("NONE", "db", "none", true),
            EnvVar {
                value_from: Some(EnvSource {
                    field_ref: Some(FieldRef {
                        field_path: "status.agent".to_owned(),
                    }),
                    ..EnvSource::default()
                }),
                ..EnvVar::of("WHERE", "")
            },
        ];
    });
    let scene = scene
        .holds(
            Source::config_map("app"),
            &[("MODE", "theirs"), ("LEVEL", "3"), ("MUSTER_TASK", "forged")],
        )
        .holds(Source::secret("db"), &[("password", "s3cret"), ("user", "me")]);
    let (spec, makes) = created(&scene);
    assert_eq!(spec.env["MODE"], "mine", "what the task says wins");
    assert_eq!((spec.env["LEVEL"].as_str(), spec.env["WHERE"].as_str()), ("3", "a1"));
    assert_eq!(spec.env["MUSTER_TASK"], "t", "what Muster promises wins");
    let file = Path::new("/memory/uid-t/1/variables/variables");
    assert_eq!(spec.variables.as_deref(), Some(file));
    assert_eq!(variables(&makes), "DB_password=s3cret\0DB_user=me\0PASSWORD=s3cret\0");
    let shown = format!("{spec:?} {makes:?} {:?}", scene.plan());
    assert!(!shown.contains("s3cret"), "nothing shows it: {shown}");
    spec.check().expect("it can be made");
}

#[test]
fn files_of_a_secret_are_those_that_were_asked_for() {
    let scene = |volume: &Volume| {
        let volume = volume.clone();
        Scene::of(move |task| task.spec.volumes = vec![volume])
    };
    let holding = |volume: &Volume| scene(volume).holds(Source::secret("tls"), &[("crt", "c"), ("key", "k")]);
    let paths = |makes: &[Make]| -> Vec<String> {
        let Some(Make::Files { at, files, .. }) = makes.first() else {
            panic!("{makes:?}")
        };
        assert_eq!(at, Path::new("/memory/uid-t/1/0"));
        assert!(files.iter().all(|file| file.mode == 0o400));
        files.iter().map(|file| file.path.display().to_string()).collect()
    };
    let (spec, makes) = created(&holding(&files("tls", &[], false)));
    assert_eq!(paths(&makes), ["crt", "key"]);
    assert_eq!(spec.mounts[0].target, Path::new("/files"));
    assert!(spec.mounts[0].read_only);
    let (_, makes) = created(&holding(&files("tls", &[("key", "a/b.pem")], false)));
    assert_eq!(paths(&makes), ["a/b.pem"]);
    holding(&files("tls", &[("none", "x")], false)).check(&[], MISSING);
    let (_, makes) = created(&holding(&files("tls", &[("none", "x"), ("crt", "y")], true)));
    assert_eq!(paths(&makes), ["y"]);
    let (_, makes) = created(&scene(&files("tls", &[], true)).lacks(Source::secret("tls")));
    assert_eq!(paths(&makes), [""; 0]);
}

#[test]
fn directories_are_where_the_agent_keeps_them() {
    let volume = |at: &str| Volume {
        mount_path: at.to_owned(),
        ..Volume::default()
    };
    let empty = |medium, size_limit| Some(EmptyDir { medium, size_limit });
    let scene = Scene::of(|task| {
        task.spec.volumes = vec![
            Volume {
                empty_dir: empty(Medium::Disk, None),
                ..volume("/disk")
            },
            Volume {
                empty_dir: empty(Medium::Memory, Some(ByteSize::from_mib(1))),
                ..volume("/memory")
            },
            Volume {
                shared: Some(SharedDir {
                    name: "cache".to_owned(),
                }),
                read_only: true,
                ..volume("/cache")
            },
            Volume {
                host_path: Some(HostPath {
                    path: "/allowed/sets".to_owned(),
                    ..HostPath::default()
                }),
                ..volume("/sets")
            },
        ];
    });
    let (spec, makes) = created(&scene);
    let mounts: Vec<(String, bool)> = spec
        .mounts
        .iter()
        .map(|mount| {
            (
                format!("{} {}", mount.source.display(), mount.target.display()),
                mount.read_only,
            )
        })
        .collect();
    let expect = [
        ("/disk/volumes/uid-t/0 /disk", false),
        ("/disk/shared/default/cache /cache", true),
        ("/allowed/sets /sets", false),
    ];
    assert_eq!(mounts, expect.map(|(mount, read_only)| (mount.to_owned(), read_only)));
    let memory = MemoryDirectory {
        target: "/memory".into(),
        bytes: Some(1 << 20),
    };
    assert_eq!(spec.memory, [memory]);
    assert_eq!(makes.len(), 3);
}

#[test]
fn what_this_agent_cannot_give_ends_the_task_and_says_what_to_do() {
    let not_started = Some((Phase::Dropped, TaskReason::NotStarted));
    let host = |path: &str| {
        let path = path.to_owned();
        Scene::of(move |task| {
            task.spec.volumes = vec![Volume {
                mount_path: "/x".to_owned(),
                host_path: Some(HostPath {
                    path,
                    ..HostPath::default()
                }),
                ..Volume::default()
            }];
        })
    };
    let plan = host("/allowedx/y").check(&[], not_started);
    let message = &said(&plan).expect("said").message;
    assert!(message.contains("--allow-host-path /allowedx"), "{message}");
    let mut scene = Scene::of(|task| task.spec.env = vec![secret_var("A", "db", "k", false)])
        .holds(Source::secret("db"), &[("k", "v")]);
    scene.places = Places::default();
    let plan = scene.check(&[], not_started);
    assert!(said(&plan).expect("said").message.contains("tmpfs"));
}

#[test]
fn a_further_attempt_waits_for_what_is_not_there_any_more() {
    let again = |scene: Scene| scene.with("t", 1, exit(1)).after_secs(600);
    let scene = Scene::at(Phase::Running, |task| {
        task.spec.restart_policy = RestartPolicy::OnFailure;
        task.spec.env = vec![secret_var("A", "db", "k", false)];
    });
    let back_off = Some((Phase::Running, TaskReason::BackOff));
    let plan = again(scene).lacks(Source::secret("db")).check(&[], back_off);
    let message = &said(&plan).expect("said").message;
    assert!(message.contains("Secret db"), "{message}");
}
