//! What is wrong with the variables and directories that a task takes from elsewhere, field by field.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use super::source::{EnvFrom, EnvSource, EnvVar, KeyRef};
use super::task::Task;
use super::volume::{EmptyDir, Medium, SourceFiles, Volume};
use crate::names;
use crate::quantity::ByteSize;
use crate::validation::{FieldPath, Violations};

/// Volumes of one task: each is a mount of the container, of which runtimes make some thousands a second.
const VOLUMES_MAX: usize = 64;
const SOURCES_MAX: usize = 64;
/// Secrets for one image: one of them is used.
const PULL_SECRETS_MAX: usize = 16;
const ITEMS_MAX: usize = 1000;
const MODE_MAX: u32 = 0o777;

/// Directories that a container needs as they are, and why nothing can be put there.
const TAKEN: [(&str, &str); 4] = [
    ("/proc", "the kernel's own files are there"),
    ("/sys", "the kernel's own files are there"),
    (
        "/dev",
        "the task's devices are there; its shared memory is at /dev/shm already",
    ),
    ("/.muster", "the agent's own files are there"),
];

/// Says that of several fields exactly one has to be there.
fn exactly_one(violations: &mut Violations, path: &FieldPath, fields: &[(&str, bool)]) {
    let mut given = fields.iter().filter(|(_, given)| *given);
    match (given.next(), given.next()) {
        (None, _) => {
            let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
            violations.required(path, &format!("one of {}", names.join(", ")));
        }
        (Some(_), None) => {}
        (Some((first, _)), Some((second, _))) => {
            violations.forbidden(&path.field(second), &format!("{first} is given, and only one can be"));
        }
    }
}

fn name(violations: &mut Violations, path: &FieldPath, name: &str) {
    violations.check(&path.field("name"), name, names::dns_subdomain_problem(name));
}

fn key(violations: &mut Violations, path: &FieldPath, key: &str) {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if key.is_empty() || key.len() > 253 || !key.chars().all(fine) || [".", ".."].contains(&key) {
        let why = "a key consists of alphanumeric characters, '-', '_' or '.'";
        violations.invalid(&path.field("key"), key, why);
    }
}

fn mode(violations: &mut Violations, path: &FieldPath, mode: Option<u32>) {
    if let Some(mode) = mode.filter(|mode| *mode > MODE_MAX) {
        violations.invalid(
            path,
            mode,
            "must be from 0 to 511, which is 0777; 0400 is 256 and 0644 is 420",
        );
    }
}

impl EnvVar {
    pub(super) fn validate_source(&self, violations: &mut Violations, path: &FieldPath, task: &Task) {
        let Some(from) = &self.value_from else { return };
        let path = path.field("valueFrom");
        if !self.value.is_empty() {
            violations.forbidden(&path, "value is given, and only one can be");
        }
        from.validate(violations, &path, task);
    }
}

impl EnvSource {
    fn validate(&self, violations: &mut Violations, path: &FieldPath, task: &Task) {
        let fields = [
            ("secretKeyRef", self.secret_key_ref.is_some()),
            ("configMapKeyRef", self.config_map_key_ref.is_some()),
            ("fieldRef", self.field_ref.is_some()),
        ];
        exactly_one(violations, path, &fields);
        let keys = [
            ("secretKeyRef", &self.secret_key_ref),
            ("configMapKeyRef", &self.config_map_key_ref),
        ];
        for (field, found) in keys {
            if let Some(KeyRef { name: of, key: k, .. }) = found {
                let path = path.field(field);
                name(violations, &path, of);
                key(violations, &path, k);
            }
        }
        if let Some(field) = &self.field_ref
            && task.field(&field.field_path).is_none()
        {
            let why = "must be metadata.name, metadata.namespace, metadata.uid, metadata.labels['KEY'], metadata.annotations['KEY'], \
                       spec.framework, spec.role, status.agent or status.offer";
            violations.invalid(&path.field("fieldRef").field("fieldPath"), &field.field_path, why);
        }
    }
}

impl EnvFrom {
    fn validate(&self, violations: &mut Violations, path: &FieldPath) {
        let fields = [
            ("secretRef", self.secret_ref.is_some()),
            ("configMapRef", self.config_map_ref.is_some()),
        ];
        exactly_one(violations, path, &fields);
        for (field, found) in [("secretRef", &self.secret_ref), ("configMapRef", &self.config_map_ref)] {
            if let Some(found) = found {
                name(violations, &path.field(field), &found.name);
            }
        }
        if self.prefix.contains(['=', '\0']) {
            let why = "must not contain '=' or a NUL character";
            violations.invalid(&path.field("prefix"), &self.prefix, why);
        }
    }
}

impl Task {
    /// What is wrong with what it takes from elsewhere.
    pub(super) fn validate_given(&self, violations: &mut Violations, spec: &FieldPath) {
        let from = spec.field("envFrom");
        if self.spec.env_from.len() > SOURCES_MAX {
            violations.too_many(&from, self.spec.env_from.len(), SOURCES_MAX);
        }
        for (index, one) in self.spec.env_from.iter().enumerate() {
            one.validate(violations, &from.index(index));
        }
        let secrets = spec.field("imagePullSecrets");
        if self.spec.image_pull_secrets.len() > PULL_SECRETS_MAX {
            violations.too_many(&secrets, self.spec.image_pull_secrets.len(), PULL_SECRETS_MAX);
        }
        for (index, secret) in self.spec.image_pull_secrets.iter().enumerate() {
            name(violations, &secrets.index(index), &secret.name);
        }
        let volumes = spec.field("volumes");
        if self.spec.volumes.len() > VOLUMES_MAX {
            violations.too_many(&volumes, self.spec.volumes.len(), VOLUMES_MAX);
        }
        let mut places = BTreeSet::new();
        for (index, volume) in self.spec.volumes.iter().enumerate() {
            let path = volumes.index(index);
            volume.validate(violations, &path);
            if !places.insert(Path::new(&volume.mount_path).components().collect::<Vec<_>>()) {
                violations.duplicate(&path.field("mountPath"), &volume.mount_path);
            }
        }
        self.validate_sizes(violations, &volumes);
    }

    /// Empty directories together are no larger than what the task is charged for.
    fn validate_sizes(&self, violations: &mut Violations, volumes: &FieldPath) {
        let limits = self.spec.limits.as_ref();
        let memory = limits
            .and_then(|limits| limits.memory)
            .unwrap_or(self.spec.resources.memory);
        let charged = [
            (Medium::Memory, memory, "limits.memory, or without it resources.memory"),
            (Medium::Disk, self.spec.resources.disk, "resources.disk"),
        ];
        for (medium, most, of) in charged {
            let mut sum = 0_u64;
            for (index, volume) in self.spec.volumes.iter().enumerate() {
                let Some(EmptyDir {
                    medium: found,
                    size_limit: Some(size),
                }) = &volume.empty_dir
                else {
                    continue;
                };
                if *found != medium {
                    continue;
                }
                sum = sum.saturating_add(size.bytes());
                if *size == ByteSize::ZERO || sum > most.bytes() {
                    let why = format!("must be more than zero, and all of them together at most spec.{of} ({most})");
                    let path = volumes.index(index).field("emptyDir").field("sizeLimit");
                    violations.invalid(&path, size, &why);
                }
            }
        }
    }
}

/// Why a path cannot be one of the machine or the container: it is relative, climbs, or has something odd in it.
fn path_problem(path: &str) -> Option<&'static str> {
    let odd = path.contains("//") || path.len() > 1024 || path.chars().any(char::is_control);
    let climbs = path.split('/').any(|part| matches!(part, "." | ".."));
    (!path.starts_with('/') || odd || climbs).then_some("must be an absolute path without '.', '..' and '//'")
}

impl Volume {
    fn validate(&self, violations: &mut Violations, path: &FieldPath) {
        let fields = [
            ("secret", self.secret.is_some()),
            ("configMap", self.config_map.is_some()),
            ("emptyDir", self.empty_dir.is_some()),
            ("hostPath", self.host_path.is_some()),
            ("shared", self.shared.is_some()),
        ];
        exactly_one(violations, path, &fields);
        self.validate_place(violations, &path.field("mountPath"));
        for (field, files) in [("secret", &self.secret), ("configMap", &self.config_map)] {
            if let Some(files) = files {
                files.validate(violations, &path.field(field));
            }
        }
        if self.read_only && self.empty_dir.is_some() {
            let why = "an empty directory that cannot be written to stays empty";
            violations.forbidden(&path.field("readOnly"), why);
        }
        if let Some(host) = &self.host_path {
            let path = path.field("hostPath").field("path");
            if let Some(why) = path_problem(&host.path) {
                violations.invalid(&path, &host.path, why);
            }
        }
        if let Some(shared) = &self.shared {
            let path = path.field("shared").field("name");
            violations.check(&path, &shared.name, names::dns_label_problem(&shared.name));
        }
    }

    fn validate_place(&self, violations: &mut Violations, path: &FieldPath) {
        let place = &self.mount_path;
        if place.is_empty() {
            return violations.required(path, "where the task sees it, such as /data");
        }
        if let Some(why) = path_problem(place) {
            return violations.invalid(path, place, why);
        }
        let taken = TAKEN
            .iter()
            .find(|(taken, _)| Path::new(place).starts_with(taken))
            .map(|(_, why)| *why);
        let root = (Path::new(place).components().count() < 2).then_some("the image is there");
        if let Some(why) = taken.or(root) {
            violations.invalid(path, place, &format!("cannot be used: {why}"));
        }
    }
}

impl SourceFiles {
    fn validate(&self, violations: &mut Violations, path: &FieldPath) {
        name(violations, path, &self.name);
        mode(violations, &path.field("defaultMode"), self.default_mode);
        let items = path.field("items");
        if self.items.len() > ITEMS_MAX {
            violations.too_many(&items, self.items.len(), ITEMS_MAX);
        }
        let mut seen = BTreeSet::new();
        for (index, item) in self.items.iter().enumerate() {
            let path = items.index(index);
            key(violations, &path, &item.key);
            mode(violations, &path.field("mode"), item.mode);
            let parts = Path::new(&item.path).components();
            let inside = !item.path.is_empty() && parts.clone().all(|part| matches!(part, Component::Normal(_)));
            if !inside || item.path.len() > 1024 || item.path.chars().any(char::is_control) {
                let why = "must be a relative path without '..', such as tls/key.pem";
                violations.invalid(&path.field("path"), &item.path, why);
            } else if !seen.insert(parts.collect::<Vec<_>>()) {
                violations.duplicate(&path.field("path"), &item.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::v1::TaskSpec;

    fn check(spec: Value, expect: &[&str]) {
        let spec: TaskSpec = serde_json::from_value(spec).expect("a spec");
        let mut violations = Violations::new();
        Task::new("t", spec).validate_given(&mut violations, &FieldPath::root("spec"));
        let found: Vec<String> = violations.into_vec().into_iter().map(|found| found.field).collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn a_volume_is_exactly_one_thing_at_a_place_of_its_own() {
        let volume = |at: &str, more: Value| {
            let mut volume = more;
            volume["mountPath"] = json!(at);
            json!({"volumes": [volume]})
        };
        check(volume("/data", json!({"emptyDir": {}})), &[]);
        check(volume("/data", json!({"shared": {"name": "cache"}})), &[]);
        check(volume("/data", json!({})), &["spec.volumes[0]"]);
        check(
            volume("/data", json!({"emptyDir": {}, "shared": {"name": "x"}})),
            &["spec.volumes[0].shared"],
        );
        for at in [
            "",
            "data",
            "/",
            "/proc/x",
            "/dev/shm",
            "/sys",
            "/a/../b",
            "/a//b",
            "/.muster/x",
        ] {
            check(volume(at, json!({"emptyDir": {}})), &["spec.volumes[0].mountPath"]);
        }
        check(
            json!({"volumes": [{"mountPath": "/a", "emptyDir": {}}, {"mountPath": "/a/", "emptyDir": {}}]}),
            &["spec.volumes[1].mountPath"],
        );
        check(
            volume("/a", json!({"emptyDir": {}, "readOnly": true})),
            &["spec.volumes[0].readOnly"],
        );
        check(
            volume("/a", json!({"hostPath": {"path": "etc"}})),
            &["spec.volumes[0].hostPath.path"],
        );
        check(
            volume("/a", json!({"shared": {"name": "../x"}})),
            &["spec.volumes[0].shared.name"],
        );
    }

    #[test]
    fn files_of_objects_stay_inside() {
        let files = |files: Value| json!({"volumes": [{"mountPath": "/a", "secret": files}]});
        check(
            files(json!({"name": "s", "items": [{"key": "k", "path": "a/b", "mode": 256}]})),
            &[],
        );
        check(
            files(json!({"name": "S", "defaultMode": 512, "items": [
                {"key": "k", "path": "../x"}, {"key": "", "path": "/etc"}, {"key": "k", "path": "x"}, {"key": "k", "path": "x"}]})),
            &[
                "spec.volumes[0].secret.name",
                "spec.volumes[0].secret.defaultMode",
                "spec.volumes[0].secret.items[0].path",
                "spec.volumes[0].secret.items[1].key",
                "spec.volumes[0].secret.items[1].path",
                "spec.volumes[0].secret.items[3].path",
            ],
        );
    }

    #[test]
    fn empty_directories_are_charged() {
        let spec = |memory: &str, disk: &str| {
            json!({"resources": {"memory": "64Mi", "disk": "1Gi"}, "volumes": [
                {"mountPath": "/m", "emptyDir": {"medium": "Memory", "sizeLimit": memory}},
                {"mountPath": "/n", "emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}},
                {"mountPath": "/d", "emptyDir": {"sizeLimit": disk}}]})
        };
        check(spec("32Mi", "1Gi"), &[]);
        check(
            spec("33Mi", "2Gi"),
            &[
                "spec.volumes[1].emptyDir.sizeLimit",
                "spec.volumes[2].emptyDir.sizeLimit",
            ],
        );
    }

    #[test]
    fn a_variable_comes_from_one_place_that_there_can_be() {
        let problems = |var: Value| {
            let var: EnvVar = serde_json::from_value(var).expect("a variable");
            let mut violations = Violations::new();
            let task = Task::new("t", TaskSpec::default());
            var.validate_source(&mut violations, &FieldPath::root("v"), &task);
            let found = violations.into_vec().into_iter();
            found.map(|found| found.field).collect::<Vec<_>>()
        };
        let from = |from: Value| problems(json!({"name": "A", "valueFrom": from}));
        assert!(from(json!({"secretKeyRef": {"name": "s", "key": "k"}})).is_empty());
        assert!(from(json!({"fieldRef": {"fieldPath": "metadata.labels['a']"}})).is_empty());
        assert_eq!(from(json!({})), ["v.valueFrom"]);
        assert_eq!(
            from(json!({"fieldRef": {"fieldPath": "spec.nodeName"}})),
            ["v.valueFrom.fieldRef.fieldPath"]
        );
        assert_eq!(
            from(json!({"secretKeyRef": {"name": "s", "key": "k"}, "configMapKeyRef": {"name": "s", "key": "a b"}})),
            ["v.valueFrom.configMapKeyRef", "v.valueFrom.configMapKeyRef.key"]
        );
        assert_eq!(
            problems(json!({"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})),
            ["v.valueFrom"]
        );
        check(json!({"envFrom": [{}]}), &["spec.envFrom[0]"]);
        check(
            json!({"envFrom": [{"secretRef": {"name": "a"}, "prefix": "A="}]}),
            &["spec.envFrom[0].prefix"],
        );
    }
}
