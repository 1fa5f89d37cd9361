//! The whole API with requests that schemathesis makes up from our own OpenAPI documents, as three users and on both stores: the server never fails,
//! and what it answers is what it documents.
//!
//! There is no agent, so nothing that is made up is ever run. A short run by default; `MUSTER_FUZZED=long` makes at least 20,000 requests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use muster_e2e::parts::{Home, Process};
use muster_store::testing::EtcdCluster;
use serde_json::Value;

/// Who asks, and what is said so that the administrator is taken for them.
const USERS: [(&str, &[&str]); 3] = [
    (
        "an agent",
        &[
            "Impersonate-User: system:muster:agent:a",
            "Impersonate-Group: system:muster:agents",
        ],
    ),
    ("al", &["Impersonate-User: al"]),
    ("the administrator", &[]),
];

/// Those with most of it first.
const DOCUMENTS: [&str; 8] = [
    "apis/muster.dev/v1",
    "api/v1",
    "apis/coordination.k8s.io/v1",
    "apis/events.k8s.io/v1",
    "apis/apiextensions.k8s.io/v1",
    "apis/authentication.k8s.io/v1",
    "apis/authorization.k8s.io/v1",
    "apis/rbac.authorization.k8s.io/v1",
];

struct Server {
    home: Home,
    process: Process,
}

impl Server {
    fn start(more: &[&str]) -> Result<Server> {
        let home = Home::new()?;
        let data = home.path().join("server").display().to_string();
        let args = [
            "server",
            "--listen",
            "127.0.0.1:0",
            "--name",
            "server",
            "--data-dir",
            &data,
        ];
        let mut process = home.start("server", &[&args, more].concat())?;
        let ready = home.path().join("server/kubeconfig");
        process.until("it serves", || ready.exists())?;
        let server = Server { home, process };
        let binding = ["create", "rolebinding", "al-edits", "--clusterrole=edit", "--user=al"];
        server.kubectl(&binding)?;
        Ok(server)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("server").join(name)
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("kubectl")
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("HOME", self.home.path())
            .args(args)
            .output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {args:?}: {error}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What its kubeconfig says.
    fn access(&self) -> Result<(String, String)> {
        let config: Value = serde_yaml::from_str(&fs::read_to_string(self.path("kubeconfig"))?)?;
        let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let url = text("/clusters/0/cluster/server").context("no server")?;
        Ok((url, text("/users/0/user/token").context("no token")?))
    }

    /// Has requests made up from a document; how many there were.
    fn fuzz(&self, document: &str, headers: &[&str], long: bool) -> Result<u64> {
        let (url, token) = self.access()?;
        let schema = self.home.path().join("schema.json");
        fs::write(
            &schema,
            self.kubectl(&["get", "--raw", &format!("/openapi/v3/{document}")])?,
        )?;
        let report = self.home.path().join("report.json");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = root.join("../target/schemathesis/bin/schemathesis");
        let mut command = Command::new(&program);
        command
            .current_dir(self.home.path())
            .env("PYTHONPATH", root.join("tests/fuzzed"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("SCHEMATHESIS_HOOKS", "hooks")
            .arg("run")
            .arg(&schema)
            .args(["--url", &url])
            .arg("--tls-verify")
            .arg(self.path("pki/ca.crt"))
            .arg(format!("--header=Authorization: Bearer {token}"))
            .args(headers.iter().map(|header| format!("--header={header}")))
            .args([
                "--checks",
                "not_a_server_error,content_type_conformance,response_schema_conformance",
            ])
            .args(["--phases", if long { "coverage,fuzzing,stateful" } else { "fuzzing" }])
            .args(["--max-examples", if long { "10" } else { "3" }])
            .args(["--seed", "1", "--no-shrink", "--no-color", "--continue-on-failure"])
            .args([
                "--suppress-health-check",
                "all",
                "--generation-database",
                "none",
                "--warnings",
                "off",
            ])
            .args(["--request-timeout", "30", "--report", "json", "--report-json-path"])
            .arg(&report);
        let output = command
            .output()
            .with_context(|| format!("{}: run ./hack/test, which installs it", program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{document}: {said}\n{}", self.process.said());
        let report: Value = serde_json::from_str(&fs::read_to_string(&report)?)?;
        report["test_cases"]["generated"].as_u64().context("no count")
    }

    /// Of a short run, only the first documents.
    fn fuzz_all(&self, first: usize) -> Result<()> {
        let long = std::env::var("MUSTER_FUZZED").is_ok_and(|value| value == "long");
        let documents = if long { &DOCUMENTS[..] } else { &DOCUMENTS[..first] };
        let mut count = 0;
        for (user, headers) in USERS {
            for document in documents {
                let made = self.fuzz(document, headers, long).with_context(|| user.to_owned())?;
                println!("{document} as {user}: {made} requests");
                count += made;
            }
        }
        ensure!(count > if long { 20_000 } else { 500 }, "only {count} requests");
        let said = self.process.said();
        ensure!(!said.contains("panicked"), "{said}");
        Ok(())
    }
}

#[test]
fn nothing_that_can_be_asked_fails_the_server_on_its_own_store() -> Result<()> {
    Server::start(&[])?.fuzz_all(DOCUMENTS.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_can_be_asked_fails_the_server_on_etcd() -> Result<()> {
    let etcd = EtcdCluster::single().await;
    Server::start(&["--etcd", &etcd.endpoints().join(",")])?.fuzz_all(2)
}
