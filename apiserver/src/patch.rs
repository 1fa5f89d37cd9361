//! Patches: JSON merge patch (RFC 7386) and JSON patch (RFC 6902).
//!
//! A strategic merge patch needs to know the keys of lists, and an apply patch the owners of fields; both are refused with the types
//! that are taken. One deviation from RFC 6902: a test for `null` at a path that is not there holds, as in Kubernetes, and
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
    /// Steps.
    Json(Vec<PatchOperation>),
}

impl Patch {
    /// Reads a patch.
    pub fn parse(content_type: ContentType, bytes: &[u8]) -> Result<Patch> {
        match content_type {
            ContentType::MergePatch => {
                let decoded = body::json(bytes)?;
                if decoded.value.is_object() {
                    Ok(Patch::Merge(decoded.value, decoded.duplicates))
                } else {
                    Err(ApiError::bad_request("a merge patch must be a JSON object"))
                }
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
            other => {
                let hint = match other {
                    ContentType::StrategicMergePatch => " (with kubectl: --type=merge)",
                    _ => "",
                };
                let message = format!(
                    "the body of the request was in an unsupported format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json{hint}"
                );
                Err(ApiError::unsupported_media_type(message))
            }
        }
    }

    /// The paths of duplicate keys.
    pub fn duplicates(&self) -> &[String] {
        match self {
            Patch::Merge(_, duplicates) => duplicates,
            Patch::Json(_) => &[],
        }
    }

    /// The object with the changes.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let mut changed = object.clone();
        match self {
            Patch::Merge(patch, _) => json_patch::merge(&mut changed, patch),
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
        let result = Patch::parse(content_type, patch.to_string().as_bytes()).and_then(|patch| patch.apply(&object));
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
            ContentType::StrategicMergePatch,
            ContentType::ApplyPatch,
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
