//! The grammar of paths.

use crate::params::decode;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Objects of a kind, which may not exist.
    Object(Target),
    /// Anything else, without the slash at its end.
    Other(String),
}

/// Objects of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    /// Empty for the core group.
    pub(crate) group: String,
    /// As in `v1`.
    pub(crate) version: String,
    /// The kind.
    pub(crate) plural: String,
    /// Empty: all, or none.
    pub(crate) namespace: String,
    /// Empty: all of them.
    pub(crate) name: String,
    /// Empty: the object itself.
    pub(crate) subresource: String,
}

/// What can stand behind the name of a namespace and is no kind in it.
const OF_NAMESPACES: [&str; 2] = ["status", "finalize"];

impl Path {
    /// Takes a path apart. Slashes at its end don't matter.
    pub(crate) fn parse(path: &str) -> Path {
        let trimmed = path.trim_end_matches('/');
        let other = || {
            Path::Other(if trimmed.is_empty() {
                "/".to_owned()
            } else {
                trimmed.to_owned()
            })
        };
        let mut segments = trimmed.split('/').skip(1).map(|segment| decode(segment, false));
        let group = match segments.next().as_deref() {
            Some("api") => Some(String::new()),
            Some("apis") => segments.next(),
            _ => None,
        };
        let (Some(group), Some(version)) = (group, segments.next()) else {
            return other();
        };
        let mut rest: Vec<String> = segments.collect();
        if rest.is_empty() {
            return other();
        }
        if rest.iter().any(|segment| segment.is_empty() || segment.contains('/')) {
            return other();
        }
        let of_namespace = |rest: &[String]| {
            let namespaced = rest[0] == "namespaces" && rest.len() > 2;
            namespaced && !(group.is_empty() && rest.len() == 3 && OF_NAMESPACES.contains(&rest[2].as_str()))
        };
        let namespace = if of_namespace(&rest) {
            rest.remove(0);
            rest.remove(0)
        } else {
            String::new()
        };
        let mut rest = rest.into_iter();
        let mut next = || rest.next().unwrap_or_default();
        let target = Target {
            group,
            version,
            namespace,
            plural: next(),
            name: next(),
            subresource: next(),
        };
        if rest.next().is_some() {
            other()
        } else {
            Path::Object(target)
        }
    }

    /// What stands for the path in metrics (no names), and the name.
    pub(crate) fn label(&self) -> (String, String) {
        match self {
            Path::Object(target) => {
                let slash = if target.subresource.is_empty() { "" } else { "/" };
                let label = format!("{}{slash}{}", target.plural, target.subresource);
                (label, target.name.clone())
            }
            Path::Other(path) => (path.clone(), String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        let parts: Vec<String> = text.split(' ').map(|part| part.replace('-', "")).collect();
        let [group, version, namespace, plural, name, subresource] = parts.try_into().expect("six parts");
        Target {
            group,
            version,
            plural,
            namespace,
            name,
            subresource,
        }
    }

    #[test]
    fn paths_of_objects_have_a_grammar() {
        for (path, expect) in [
            ("/api/v1/namespaces", "- v1 - namespaces - -"),
            ("/api/v1/namespaces/", "- v1 - namespaces - -"),
            ("/api/v1/namespaces/d", "- v1 - namespaces d -"),
            ("/api/v1/namespaces/d/status", "- v1 - namespaces d status"),
            ("/api/v1/namespaces/d/configmaps", "- v1 d configmaps - -"),
            ("/api/v1/configmaps", "- v1 - configmaps - -"),
            (
                "/apis/muster.dev/v1/namespaces/d/tasks/t/status/",
                "muster.dev v1 d tasks t status",
            ),
            (
                "/apis/muster.dev/v1/agents/a%31/offers",
                "muster.dev v1 - agents a1 offers",
            ),
        ] {
            assert_eq!(Path::parse(path), Path::Object(target(expect)), "{path}");
        }
        for path in [
            "/",
            "",
            "/api",
            "/apis/",
            "/api/v1/",
            "/apis/muster.dev",
            "/apis/muster.dev/v1",
            "/livez",
        ] {
            assert!(matches!(Path::parse(path), Path::Other(_)), "{path}");
        }
        for path in [
            "/api/v1/namespaces/d/configmaps/a/b/c",
            "/api/v1//x",
            "/api/v1/configmaps/a%2fb",
        ] {
            assert!(matches!(Path::parse(path), Path::Other(_)), "{path}");
        }
    }
}
