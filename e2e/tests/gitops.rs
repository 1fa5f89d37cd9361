//! The guide of `manifests/gitops`, typed as it is written, with a real repository; and the scripts that Argo CD asks, with real objects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use muster_e2e::{Cluster, mctl_binary};
use serde_json::Value;

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// Runs a program and gives what it printed.
fn run(command: &mut Command, what: &str) -> Result<String> {
    let ran = command.output().with_context(|| format!("cannot run {what}"))?;
    let out = String::from_utf8_lossy(&ran.stdout).into_owned();
    ensure!(
        ran.status.success(),
        "{what}: {}\n{out}{}",
        ran.status,
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(out)
}

#[test]
fn the_guide_can_be_typed_from_its_beginning_to_its_end() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let guide = fs::read_to_string(manifests().join("gitops/README.md"))?;
    let blocks: Vec<&str> = guide
        .split("\n```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("\n```").next())
        .collect();
    assert!(blocks.len() >= 7, "{} blocks", blocks.len());
    let tools = mctl_binary().parent().context("a directory")?.display().to_string();
    let mut place = cluster.home().to_owned();
    for block in blocks {
        let mut command = cluster.command(Path::new("bash"));
        let path = format!("{tools}:{}", std::env::var("PATH").unwrap_or_default());
        command
            .env("PATH", path)
            .env("MANIFESTS", manifests())
            .current_dir(&place);
        for (name, value) in [("NAME", "pipeline"), ("EMAIL", "pipeline@example.com")] {
            command.env(format!("GIT_AUTHOR_{name}"), value);
            command.env(format!("GIT_COMMITTER_{name}"), value);
        }
        run(command.args(["-euo", "pipefail", "-c", block]), block)?;
        if block.contains("\ncd cluster") {
            place.push("cluster");
        }
    }
    let settings = fs::read_to_string(place.join("argocd-cm.yaml"))?;
    let settings: Value = serde_yaml::from_str(&settings)?;
    assert_eq!(settings["data"].as_object().map(serde_json::Map::len), Some(4));
    Ok(())
}

/// A value as Lua writes it.
fn lua(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Array(items) => format!("{{{}}}", items.iter().map(lua).collect::<Vec<_>>().join(",")),
        Value::Object(map) => {
            let fields = map.iter().map(|(name, value)| format!("[{name:?}]={}", lua(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        Value::String(text) => format!("{text:?}"),
        scalar => scalar.to_string(),
    }
}

/// What the script of its kind says of an object.
fn health(object: &Value) -> Result<String> {
    let kind = object["kind"].as_str().context("an object has a kind")?;
    let script = manifests().join(format!("gitops/argocd/muster.dev/{kind}/health.lua"));
    let script = fs::read_to_string(&script)?;
    let text = format!(
        "local obj = {}\nlocal health = (function()\n{script}\nend)()\nassert(health.message)\nio.write(health.status)",
        lua(object)
    );
    run(Command::new("lua5.3").args(["-e", &text]), "lua5.3")
}

fn object(cluster: &Cluster, name: &str) -> Result<Value> {
    let text = cluster.mctl(&["get", name, "-o", "json"]).ok();
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn argo_cd_sees_what_becomes_of_objects() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let task = |name: &str, policy: &str, command: &str, cpus: &str| {
        let manifest = format!(
            "apiVersion: muster.dev/v1\nkind: Task\nmetadata: {{name: {name}}}\nspec:\n  command: [sh, -c, '{command}']\n  \
             restartPolicy: {policy}\n  resources: {{cpus: {cpus}, memory: 16Mi}}\n"
        );
        cluster.mctl_with(&["apply", "-f", "-"], &manifest).ok();
    };
    for (name, policy, command, cpus, phase, expected) in [
        ("done", "Never", "true", "0.1", "Finished", "Healthy"),
        ("broken", "Never", "exit 3", "0.1", "Failed", "Degraded"),
        ("once", "Never", "sleep 600", "0.1", "Running", "Progressing"),
        ("always", "Always", "sleep 600", "0.1", "Running", "Healthy"),
        ("waiting", "Never", "true", "100000", "Pending", "Degraded"),
    ] {
        task(name, policy, command, cpus);
        cluster.wait_phase(name, phase)?;
        let named = format!("task/{name}");
        cluster.wait_until(&format!("{name} to be {expected}"), || {
            object(&cluster, &named)
                .and_then(|object| health(&object))
                .is_ok_and(|health| health == expected)
        })?;
    }
    let killed = r#"{"spec":{"desired":"Killed"}}"#;
    cluster
        .kubectl(&["patch", "task", "once", "--type=merge", "-p", killed], "")
        .ok();
    cluster.wait_phase("once", "Killed")?;
    assert_eq!(health(&object(&cluster, "task/once")?)?, "Suspended");

    assert_eq!(health(&object(&cluster, "framework/default")?)?, "Healthy");
    let agents = cluster.mctl(&["get", "agents", "-o", "name"]).ok();
    let agent = agents.trim().replace(".muster.dev", "");
    assert_eq!(health(&object(&cluster, &agent)?)?, "Healthy");
    cluster.mctl(&["cordon", agent.trim_start_matches("agent/")]).ok();
    assert_eq!(health(&object(&cluster, &agent)?)?, "Suspended");
    let quota = "apiVersion: muster.dev/v1\nkind: Quota\nmetadata: {name: ml}\nspec: {role: ml, weight: 2}\n";
    cluster.mctl_with(&["apply", "-f", "-"], quota).ok();
    cluster.wait_until("the quota to be looked at", || {
        object(&cluster, "quota/ml")
            .and_then(|object| health(&object))
            .is_ok_and(|health| health == "Healthy")
    })
}

#[test]
fn every_example_is_valid_by_the_schemas_and_a_mistyped_field_is_not() -> Result<()> {
    let place = tempfile::tempdir()?;
    let schemas = place.path().join("schemas");
    let directory = schemas.display().to_string();
    run(
        Command::new(mctl_binary()).args(["schema", "--directory", &directory]),
        "mctl schema",
    )?;
    let mut examples: Vec<PathBuf> = fs::read_dir(manifests().join("examples"))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .collect();
    examples.sort();
    assert!(examples.len() > 4, "{examples:?}");
    let check = |file: &Path, schema: &str| {
        let script = "import json,sys,yaml,jsonschema\nschema=json.load(open(sys.argv[2]))\n\
                      for one in yaml.safe_load_all(open(sys.argv[1])): jsonschema.validate(one,schema)";
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script]).arg(file).arg(schemas.join(schema));
        run(&mut command, &format!("jsonschema of {}", file.display()))
    };
    for example in &examples {
        check(example, "all.json")?;
    }
    let hello = fs::read_to_string(manifests().join("examples/hello.yaml"))?;
    let mistyped = place.path().join("mistyped.yaml");
    fs::write(&mistyped, hello.replace("resources:", "ressources:"))?;
    for schema in ["all.json", "task-muster-v1.json"] {
        let error = check(&mistyped, schema).expect_err("it is a mistake").to_string();
        assert!(error.contains("'ressources' was unexpected"), "{error}");
    }
    Ok(())
}
