//! Secrets: data that is sealed in the store ([`muster_store::SealedStore`]), and whose types promise what is in them.
//!
//! What must never happen here: a value of one in an error, a log or a table.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use muster_api::validation::{FieldPath, Violation, Violations};
use serde_json::{Value, json};

use super::config_map::{key_problem, sealed_violations};
use super::{Context, Strategy};
use crate::error::Result;
use crate::limits;

/// The type of secrets that promise nothing.
const OPAQUE: &str = "Opaque";

pub(super) struct Secrets;

impl Strategy for Secrets {
    fn unconditional_update(&self) -> bool {
        true
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) -> Result<()> {
        complete(object, OPAQUE);
        Ok(())
    }

    fn prepare_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) -> Result<()> {
        complete(object, old["type"].as_str().unwrap_or(OPAQUE));
        Ok(())
    }

    fn validate(&self, object: &Value) -> Vec<Violation> {
        let mut violations = Violations::new();
        let path = FieldPath::root("data");
        let mut bytes = 0;
        for (key, value) in object["data"].as_object().into_iter().flatten() {
            if let Some(why) = key_problem(key) {
                violations.invalid(&path.key(key), key, why);
            }
            bytes += decoded(value).map_or(0, |value| value.len());
        }
        if bytes > limits::SECRET_BYTES {
            violations.too_long(&path, limits::SECRET_BYTES);
        }
        validate_type(&mut violations, object);
        violations.into_vec()
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<Violation> {
        let mut violations = Violations::new();
        if object["type"] != old["type"] {
            let found = object["type"].as_str().unwrap_or_default();
            violations.invalid(&FieldPath::root("type"), found, "field is immutable");
        }
        sealed_violations(&mut violations, object, old, &["data"]);
        violations.into_vec()
    }
}

/// Puts what was written as text where it is kept, and fills in the type.
fn complete(object: &mut Value, default: &str) {
    let Some(map) = object.as_object_mut() else { return };
    if let Some(Value::Object(texts)) = map.remove("stringData") {
        let texts = texts
            .into_iter()
            .filter_map(|(key, value)| Some((key, STANDARD.encode(value.as_str()?))));
        for (key, value) in texts {
            object["data"][key] = json!(value);
        }
    }
    if object["type"].as_str().unwrap_or_default().is_empty() {
        object["type"] = json!(default);
    }
}

fn decoded(value: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(value.as_str()?).ok()
}

/// What the types of Kubernetes promise.
fn validate_type(violations: &mut Violations, object: &Value) {
    let data = FieldPath::root("data");
    let has = |key: &str| object["data"].get(key).is_some();
    let mut require = |keys: &[&str]| {
        for key in keys.iter().filter(|key| !has(key)) {
            violations.required(&data.key(key), "secrets of this type have it");
        }
    };
    match object["type"].as_str().unwrap_or_default() {
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"]),
        "kubernetes.io/ssh-auth" => require(&["ssh-privatekey"]),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            violations.required(
                &data.key("username"),
                "secrets of this type have a username or a password",
            );
        }
        "kubernetes.io/dockercfg" => {
            require(&[".dockercfg"]);
            validate_json(violations, object, ".dockercfg");
        }
        "kubernetes.io/dockerconfigjson" => {
            require(&[".dockerconfigjson"]);
            validate_json(violations, object, ".dockerconfigjson");
        }
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            if object["metadata"]["annotations"][NAME]
                .as_str()
                .unwrap_or_default()
                .is_empty()
            {
                let path = FieldPath::root("metadata").field("annotations").key(NAME);
                violations.required(&path, "secrets of this type name a service account");
            }
        }
        _ => {}
    }
}

fn validate_json(violations: &mut Violations, object: &Value, key: &str) {
    let Some(value) = object["data"].get(key).and_then(decoded) else {
        return;
    };
    if serde_json::from_slice::<Value>(&value).is_err() {
        violations.invalid(
            &FieldPath::root("data").key(key),
            "<secret contents redacted>",
            "must be JSON",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(object: Value) -> Vec<String> {
        let violations = Secrets.validate(&object).into_iter();
        violations.map(|violation| violation.field).collect()
    }

    #[test]
    fn the_types_of_secrets_are_held_to_what_they_promise() {
        let data = |keys: &[&str]| -> Value { keys.iter().map(|key| ((*key).to_owned(), json!("e30="))).collect() };
        for (kind, keys, expect) in [
            ("Opaque", vec![], vec![]),
            ("example.org/any", vec!["x"], vec![]),
            ("kubernetes.io/tls", vec!["tls.crt", "tls.key"], vec![]),
            ("kubernetes.io/tls", vec!["tls.crt"], vec!["data[tls.key]"]),
            ("kubernetes.io/ssh-auth", vec![], vec!["data[ssh-privatekey]"]),
            ("kubernetes.io/basic-auth", vec!["password"], vec![]),
            ("kubernetes.io/basic-auth", vec![], vec!["data[username]"]),
            ("kubernetes.io/dockerconfigjson", vec![".dockerconfigjson"], vec![]),
            ("kubernetes.io/dockercfg", vec![], vec!["data[.dockercfg]"]),
            (
                "kubernetes.io/service-account-token",
                vec![],
                vec!["metadata.annotations[kubernetes.io/service-account.name]"],
            ),
            ("Opaque", vec!["no key"], vec!["data[no key]"]),
        ] {
            assert_eq!(
                problems(json!({"type": kind, "data": data(&keys)})),
                expect,
                "{kind} {keys:?}"
            );
        }
        let broken = json!({"type": "kubernetes.io/dockercfg", "data": {".dockercfg": STANDARD.encode("s3cret")}});
        let violations = Secrets.validate(&broken);
        assert!(
            !format!("{violations:?}").contains("s3cret"),
            "no error shows what is secret"
        );
        let large = STANDARD.encode(vec![0u8; limits::SECRET_BYTES + 1]);
        assert_eq!(problems(json!({"type": "Opaque", "data": {"a": large}})), ["data"]);
    }

    #[test]
    fn what_is_written_as_text_is_kept_with_the_data() {
        let mut object = json!({"data": {"a": "YQ==", "b": "Yg=="}, "stringData": {"b": "new", "c": ""}});
        complete(&mut object, OPAQUE);
        assert_eq!(
            object,
            json!({"type": "Opaque", "data": {"a": "YQ==", "b": "bmV3", "c": ""}})
        );
    }

    #[test]
    fn a_secret_keeps_its_type_and_a_sealed_one_everything() {
        let fields = |object: Value, old: Value| -> Vec<String> {
            let violations = Secrets.validate_update(&object, &old).into_iter();
            violations.map(|violation| violation.field).collect()
        };
        let old = json!({"type": "Opaque", "data": {"a": "YQ=="}, "immutable": true});
        assert_eq!(fields(old.clone(), old.clone()), Vec::<String>::new());
        assert_eq!(
            fields(
                json!({"type": "x/y", "data": {"a": "YQ=="}, "immutable": true}),
                old.clone()
            ),
            ["type"]
        );
        assert_eq!(
            fields(json!({"type": "Opaque", "data": {}}), old),
            ["immutable", "data"]
        );
    }
}
