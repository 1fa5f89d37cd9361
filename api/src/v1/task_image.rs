//! What a task says about its image, and what was found.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::task::TaskSpec;
use crate::image::ImageReference;

/// When the registry of an image is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// Before every run of the command: what the name means now is fetched, as far as it is not here.
    Always,
    /// When the agent does not have the image.
    IfNotPresent,
    /// Never: without the image, the task ends.
    Never,
}

/// A Secret with credentials for registries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullSecret {
    /// The name of a Secret of the task's namespace, of the type `kubernetes.io/dockerconfigjson`.
    pub name: String,
}

/// The image that a task runs from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskImage {
    /// As the task names it.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The digest of its manifest.
    pub digest: String,
}

impl TaskSpec {
    /// When the registry is asked, by the rules of Kubernetes: for `:latest`, which a name without tag and digest means, always; else
    /// when the image is not here. A name without a registry is never completed with one, so there is nobody to be asked.
    pub fn pull_policy(&self) -> ImagePullPolicy {
        let named = self.image.as_deref().and_then(|image| image.parse().ok());
        let moves = named.is_some_and(|image: ImageReference| {
            image.digest().is_none() && image.registry().is_some() && image.tag().is_none_or(|tag| tag == "latest")
        });
        self.image_pull_policy.unwrap_or(if moves {
            ImagePullPolicy::Always
        } else {
            ImagePullPolicy::IfNotPresent
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::v1::Task;

    #[test]
    fn the_registry_is_asked_always_for_what_moves() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (image, given, expect) in [
            ("r.io/a", None, ImagePullPolicy::Always),
            ("r.io/a:latest", None, ImagePullPolicy::Always),
            ("r.io/a:1", None, ImagePullPolicy::IfNotPresent),
            (&format!("r.io/a@{digest}"), None, ImagePullPolicy::IfNotPresent),
            (&format!("r.io/a:latest@{digest}"), None, ImagePullPolicy::IfNotPresent),
            ("busybox", None, ImagePullPolicy::IfNotPresent),
            ("localhost/a", None, ImagePullPolicy::Always),
            ("r.io/a:1", Some(ImagePullPolicy::Always), ImagePullPolicy::Always),
            ("r.io/a", Some(ImagePullPolicy::Never), ImagePullPolicy::Never),
        ] {
            let spec = TaskSpec {
                image: Some(image.to_owned()),
                image_pull_policy: given,
                ..TaskSpec::default()
            };
            assert_eq!(spec.pull_policy(), expect, "{image} {given:?}");
        }
    }

    #[test]
    fn what_is_said_about_fetching_is_said_of_an_image_that_can_be_fetched() {
        for (spec, expect) in [
            (
                json!({"image": "r.io/a", "imagePullPolicy": "Always", "imagePullSecrets": [{"name": "s"}]}),
                vec![],
            ),
            (json!({"image": "a", "imagePullPolicy": "Never"}), vec![]),
            (
                json!({"image": "a", "imagePullPolicy": "Always"}),
                vec!["spec.imagePullPolicy"],
            ),
            (json!({"imagePullPolicy": "Never"}), vec!["spec.imagePullPolicy"]),
            (
                json!({"imagePullSecrets": [{"name": "s"}]}),
                vec!["spec.imagePullSecrets"],
            ),
            (
                json!({"image": "r.io/a", "imagePullSecrets": [{"name": "../s"}]}),
                vec!["spec.imagePullSecrets[0].name"],
            ),
        ] {
            let mut whole = spec.clone();
            whole["command"] = json!(["x"]);
            whole["resources"] = json!({"cpus": "1"});
            let task = Task::new("t", serde_json::from_value(whole).expect("a spec"));
            let found: Vec<String> = task.validate().into_iter().map(|found| found.field).collect();
            assert_eq!(found, expect, "{spec}");
        }
    }
}
