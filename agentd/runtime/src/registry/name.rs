//! What the name of an image says about where it is.

/// The registry that is known by another name than its own, and that.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// An image of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    /// The registry, as it was written.
    pub(super) registry: String,
    /// The image's path there.
    pub(super) path: String,
    /// Its tag or digest.
    pub(super) reference: String,
}

impl Remote {
    /// `None`: the name says no registry.
    pub(super) fn parse(name: &str) -> Option<Remote> {
        let (registry, rest) = name.split_once('/')?;
        // What has neither cannot be told from a part of the path.
        if !registry.contains(['.', ':']) && registry != "localhost" {
            return None;
        }
        let (path, reference) = match (rest.split_once('@'), rest.rsplit_once(':')) {
            (Some((named, digest)), _) => (named.split_once(':').map_or(named, |(path, _)| path), digest),
            (None, Some((path, tag))) => (path, tag),
            (None, None) => (rest, "latest"),
        };
        let path = if registry == HUB.0 && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        Some(Remote {
            registry: registry.to_owned(),
            path,
            reference: reference.to_owned(),
        })
    }

    /// The host and port that the registry is reached by.
    pub(super) fn authority(&self) -> &str {
        if self.registry == HUB.0 { HUB.1 } else { &self.registry }
    }

    /// The digest that its manifest must have, if the name says one.
    pub(super) fn digest(&self) -> Option<&str> {
        self.reference.contains(':').then_some(&self.reference)
    }

    /// Whether it is this machine, by a name that can mean nothing else.
    pub(super) fn is_loopback(&self) -> bool {
        let host = match self.registry.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => host,
            _ => &self.registry,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address = host.parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// What files of credentials call it, the most usual first.
    pub(super) fn known_as(&self) -> Vec<String> {
        let registry = &self.registry;
        let mut names = vec![
            registry.clone(),
            format!("https://{registry}"),
            format!("https://{registry}/v2/"),
        ];
        if *registry == HUB.0 {
            names.push("https://index.docker.io/v1/".to_owned());
        }
        names
    }
}

/// Whether the name of an image says which registry has it.
pub fn has_registry(name: &str) -> bool {
    Remote::parse(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_what_cannot_be_a_part_of_a_path() {
        for (name, expect) in [
            ("busybox:1", None),
            ("team/app:1", None),
            ("localhost/app:1", Some(("localhost", "app", "1"))),
            ("registry:5000/team/app:1.2", Some(("registry:5000", "team/app", "1.2"))),
            ("[::1]:5000/app", Some(("[::1]:5000", "app", "latest"))),
            ("docker.io/busybox:1", Some(("docker.io", "library/busybox", "1"))),
            ("docker.io/team/app:1", Some(("docker.io", "team/app", "1"))),
            ("ghcr.io/a/b@sha256:0a", Some(("ghcr.io", "a/b", "sha256:0a"))),
            ("ghcr.io/a/b:tag@sha256:0a", Some(("ghcr.io", "a/b", "sha256:0a"))),
        ] {
            let found = Remote::parse(name);
            let found = found.as_ref();
            let found = found.map(|r| (r.registry.as_str(), r.path.as_str(), r.reference.as_str()));
            assert_eq!(found, expect, "{name}");
        }
    }

    #[test]
    fn only_this_machine_is_spoken_to_without_tls_unasked() {
        for (registry, loopback) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("[::1]", true),
            ("localhost.example:5000", false),
            ("10.0.0.1:5000", false),
            ("127.0.0.1.example", false),
        ] {
            let remote = Remote::parse(&format!("{registry}/app")).expect(registry);
            assert_eq!(remote.is_loopback(), loopback, "{registry}");
        }
    }
}
