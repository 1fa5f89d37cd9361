//! Secrets and service accounts with the real kubectl, and what of them lies on the disk.

use std::fs;

use anyhow::Result;
use muster_e2e::Cluster;
use serde_json::Value;

const SECRET: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {password: correct-horse}
"#;

const ACCOUNT: &str = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: robot}\n";

/// Every file of the data directory that contains this.
fn files_with(cluster: &Cluster, part: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cluster.data_dir()).expect("it can be read").flatten() {
        let Ok(content) = fs::read(entry.path()) else { continue };
        if content.windows(part.len()).any(|window| window == part) {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

#[test]
fn a_secret_is_on_no_disk_and_in_no_description_and_survives_a_restart() -> Result<()> {
    let mut cluster = Cluster::start(&[])?;
    cluster.kubectl(&["create", "-f", "-"], SECRET).ok();
    // What is not secret is there to be found, so the search finds what there is.
    let open = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {open: battery-staple}\n";
    cluster.kubectl(&["create", "-f", "-"], open).ok();
    let table = cluster.kubectl(&["get", "secrets"], "").ok();
    assert!(table.contains("Opaque") && !table.contains("horse"), "{table}");
    for described in [
        cluster.kubectl(&["describe", "secret", "s"], "").ok(),
        cluster.mctl(&["describe", "secret", "s"]).ok(),
    ] {
        assert!(described.contains("13 bytes"), "{described}");
        assert!(!described.contains("Y29ycmVjdC"), "{described}");
    }
    cluster.stop()?;
    for plain in ["correct-horse", "Y29ycmVjdC1ob3JzZQ"] {
        assert_eq!(files_with(&cluster, plain.as_bytes()), Vec::<String>::new(), "{plain}");
    }
    assert!(!files_with(&cluster, b"battery-staple").is_empty());
    cluster.launch()?;
    let value = cluster
        .kubectl(&["get", "secret", "s", "-o", "jsonpath={.data.password}"], "")
        .ok();
    assert_eq!(value, "Y29ycmVjdC1ob3JzZQ==");
    Ok(())
}

#[test]
fn a_service_account_acts_with_its_token_and_is_refused_in_the_words_of_kubernetes() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    cluster.kubectl(&["create", "-f", "-"], ACCOUNT).ok();
    let path = "/api/v1/namespaces/default/serviceaccounts/robot/token";
    let request = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"expirationSeconds":600}}"#;
    let answer = cluster.kubectl(&["create", "--raw", path, "-f", "-"], request).ok();
    let answer: Value = serde_json::from_str(&answer)?;
    let token = format!("--token={}", answer["status"]["token"].as_str().expect("a token"));
    assert_ne!(
        cluster.kubectl(&[&token, "get", "tasks"], "").code,
        0,
        "nobody gave it anything"
    );
    let bind = [
        "create",
        "rolebinding",
        "robot",
        "--clusterrole=view",
        "--serviceaccount=default:robot",
    ];
    cluster.kubectl(&bind, "").ok();
    cluster.kubectl(&[&token, "get", "tasks"], "").ok();
    let refused = cluster.kubectl(&[&token, "get", "secrets"], "");
    let expect = "secrets is forbidden: User \"system:serviceaccount:default:robot\" cannot list resource \"secrets\" in API group \"\" in the \
                  namespace \"default\"";
    assert!(refused.stderr.contains(expect), "{}", refused.stderr);
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let me = cluster
        .kubectl(&[&token, "create", "--raw", whoami, "-f", "-"], "{}")
        .ok();
    assert!(me.contains("system:serviceaccounts:default"), "{me}");
    cluster.kubectl(&["delete", "sa", "robot"], "").ok();
    let gone = cluster.kubectl(&[&token, "get", "tasks"], "");
    assert_ne!(gone.code, 0, "{}", gone.stdout);
    Ok(())
}
