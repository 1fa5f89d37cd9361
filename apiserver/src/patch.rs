//! Patches: JSON merge patch (RFC 7386), JSON patch (RFC 6902), and strategic merge patch, which knows the keys of lists.
//!
//! Kubernetes takes strategic merge patches of its own kinds only. Here every kind says how its lists merge, so every kind takes them; a
//! plain `kubectl patch` sends nothing else. What is applied is no patch of this kind: see `registry::owners`. One deviation from RFC 6902: a test for `null` at a path that is not there holds, as in Kubernetes, and
//! clients rely on it.

use json_patch::{PatchOperation, TestOperation};
use serde_json::Value;

use crate::body::{self, ContentType};
use crate::error::{ApiError, Result};
use crate::limits;

/// What is to be changed in an object.
#[derive(Clone, Debug)]
pub enum Patch {
    /// The parts that are different, `null` for what is to go; and the paths of duplicate keys.
    Merge(Value, Vec<String>),
    /// The same, with lists merged by their items and with directives; and the paths of duplicate keys.
    Strategic(Value, Vec<String>),
    /// Steps.
    Json(Vec<PatchOperation>),
}

impl Patch {
    /// Reads a patch.
    pub fn parse(content_type: ContentType, bytes: &[u8]) -> Result<Patch> {
        match content_type {
            ContentType::MergePatch | ContentType::StrategicMergePatch => {
                let decoded = body::json(bytes)?;
                if !decoded.value.is_object() {
                    return Err(ApiError::bad_request("a merge patch must be a JSON object"));
                }
                Ok(match content_type {
                    ContentType::MergePatch => Patch::Merge(decoded.value, decoded.duplicates),
                    _ => Patch::Strategic(decoded.value, decoded.duplicates),
                })
            }
            ContentType::JsonPatch => {
                let decoded = body::json(bytes)?;
                let count = decoded.value.as_array().map_or(0, Vec::len);
                if count > limits::PATCH_OPERATIONS {
                    let message = format!(
                        "the patch has {count} operations, {} are allowed",
                        limits::PATCH_OPERATIONS
                    );
                    return Err(ApiError::too_large(message));
                }
                let operations = serde_json::from_value(decoded.value)
                    .map_err(|error| ApiError::bad_request(format!("the body is not a JSON patch: {error}")))?;
                Ok(Patch::Json(operations))
            }
            _ => {
                let message = "the body of the request was in an unknown format - accepted media types include: \
                               application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, \
                               application/apply-patch+yaml";
                Err(ApiError::unsupported_media_type(message))
            }
        }
    }

    /// The paths of duplicate keys.
    pub fn duplicates(&self) -> &[String] {
        match self {
            Patch::Merge(_, duplicates) | Patch::Strategic(_, duplicates) => duplicates,
            Patch::Json(_) => &[],
        }
    }

    /// The object with the changes.
    pub fn apply(&self, schema: &muster_apply::Schema, object: &Value) -> Result<Value> {
        let mut changed = object.clone();
        match self {
            Patch::Merge(patch, _) => json_patch::merge(&mut changed, patch),
            Patch::Strategic(patch, _) => {
                changed = muster_apply::strategic::patch(schema, object, patch)
                    .map_err(|error| ApiError::bad_request(error.to_string()))?;
            }
            Patch::Json(operations) => {
                let mut copied = 0;
                for (index, operation) in operations.iter().enumerate() {
                    apply(&mut changed, operation, &mut copied, index)?;
                }
            }
        }
        if changed.is_object() {
            Ok(changed)
        } else {
            Err(ApiError::bad_request("the patch leaves no object"))
        }
    }
}

fn apply(object: &mut Value, operation: &PatchOperation, copied: &mut usize, index: usize) -> Result<()> {
    if let PatchOperation::Test(TestOperation {
        path,
        value: Value::Null,
    }) = operation
        && path.resolve(object).is_err()
    {
        return Ok(());
    }
    if let PatchOperation::Copy(copy) = operation
        && let Ok(source) = copy.from.resolve(object)
    {
        // Copies of copies double; bodies are bounded, so only this could make the object explode.
        *copied += source.to_string().len();
        if *copied > limits::BODY_BYTES {
            let message = format!("the patch copies more than {} bytes", limits::BODY_BYTES);
            return Err(ApiError::too_large(message));
        }
    }
    json_patch::patch(object, std::slice::from_ref(operation)).map_err(|error| {
        let message = format!(
            "the server rejected our request due to an error in our request: operation {index} of the patch: {error}"
        );
        ApiError::unprocessable(message)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(content_type: ContentType, object: Value, patch: Value, expect: Result<Value, u16>) {
        let list = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]});
        let kind = json!({"type": "object", "properties": {"env": list}});
        let schema = muster_apply::Schema::new(&kind, &json!({}));
        let patched = Patch::parse(content_type, patch.to_string().as_bytes());
        let result = patched.and_then(|patch| patch.apply(&schema, &object));
        assert_eq!(
            result.map_err(|error| error.code.as_u16()),
            expect,
            "{patch} on {object}"
        );
    }

    #[test]
    fn a_merge_patch_replaces_and_removes() {
        let object = json!({"a": {"b": 1, "c": [1, 2]}, "d": 4});
        let patch = json!({"a": {"b": null, "c": [3], "e": {"f": null}}, "d": 5});
        check(
            ContentType::MergePatch,
            object,
            patch,
            Ok(json!({"a": {"c": [3], "e": {}}, "d": 5})),
        );
        check(ContentType::MergePatch, json!({}), json!([1]), Err(400));
    }

    #[test]
    fn a_strategic_merge_patch_knows_items() {
        let object = json!({"env": [{"name": "a", "value": "1"}]});
        let patch = json!({"env": [{"name": "b"}]});
        let both = json!({"env": [{"name": "a", "value": "1"}, {"name": "b"}]});
        check(ContentType::StrategicMergePatch, object.clone(), patch, Ok(both));
        check(
            ContentType::StrategicMergePatch,
            object.clone(),
            json!({"$patch": "x"}),
            Err(400),
        );
        check(ContentType::StrategicMergePatch, object, json!([1]), Err(400));
    }

    #[test]
    fn a_json_patch_is_all_or_nothing() {
        let object = json!({"a": [1], "b": 2});
        let patch = json!([{"op": "add", "path": "/a/-", "value": 2}, {"op": "remove", "path": "/b"}]);
        check(ContentType::JsonPatch, object.clone(), patch, Ok(json!({"a": [1, 2]})));
        for patch in [
            json!([{"op": "test", "path": "/b", "value": 3}]),
            json!([{"op": "remove", "path": "/x"}]),
            json!([{"op": "test", "path": "/x", "value": 3}]),
        ] {
            check(ContentType::JsonPatch, object.clone(), patch, Err(422));
        }
        check(ContentType::JsonPatch, object.clone(), json!([{"op": "bad"}]), Err(400));
        check(
            ContentType::JsonPatch,
            object,
            json!([{"op": "replace", "path": "", "value": 3}]),
            Err(400),
        );
    }

    #[test]
    fn testing_for_null_where_nothing_is_holds() {
        let patch = json!([
            {"op": "test", "path": "/metadata/finalizers", "value": null},
            {"op": "add", "path": "/metadata/finalizers", "value": ["x"]},
        ]);
        check(
            ContentType::JsonPatch,
            json!({"metadata": {}}),
            patch.clone(),
            Ok(json!({"metadata": {"finalizers": ["x"]}})),
        );
        check(
            ContentType::JsonPatch,
            json!({"metadata": {"finalizers": ["y"]}}),
            patch,
            Err(422),
        );
    }

    #[test]
    fn copies_of_copies_are_bounded() {
        let mut patch = vec![json!({"op": "add", "path": "/a", "value": ["x".repeat(1000)]})];
        patch.extend((0..40).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"})));
        check(ContentType::JsonPatch, json!({}), Value::Array(patch), Err(413));
        let many = vec![json!({"op": "test", "path": "/a", "value": null}); limits::PATCH_OPERATIONS + 1];
        check(ContentType::JsonPatch, json!({}), Value::Array(many), Err(413));
    }

    #[test]
    fn other_patches_are_refused_with_what_is_taken() {
        let types = [
            ContentType::ApplyPatch,
            ContentType::Yaml,
            ContentType::Json,
            ContentType::Other,
        ];
        for content_type in types {
            let error = Patch::parse(content_type, b"{}").expect_err("refused");
            assert_eq!(error.code.as_u16(), 415);
            assert!(
                error.message.contains("application/merge-patch+json"),
                "{}",
                error.message
            );
        }
    }
}
