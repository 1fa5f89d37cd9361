//! What a request is about, as its method and path say it: before anything is known of who asks, or whether there is such a thing.

use std::borrow::Cow;

use http::Method;
use http::request::Parts;

use super::path::{Path, Target};
use crate::auth::Attributes;
use crate::params::Query;
use crate::streams::Action;

/// The ordered watch.
const WATCH: &str = "/muster/v1/watch";
/// Reasons that the controllers tell; they are kept by nobody.
const PLAN: &str = "/muster/v1/plan";

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct About<'a> {
    verb: Cow<'a, str>,
    /// `None`: it is about a path.
    pub(super) target: Option<&'a Target>,
    path: &'a str,
    /// Whether its answer goes on for as long as somebody reads it.
    pub(super) lasts: bool,
}

impl<'a> About<'a> {
    pub(super) fn of(path: &'a Path, parts: &'a Parts) -> About<'a> {
        match path {
            Path::Object(target) => About {
                verb: verb(target, parts),
                target: Some(target),
                path: "",
                lasts: target.subresource == "log"
                    || Action::of(&target.subresource).is_some()
                    || watches(target, parts),
            },
            Path::Other(path) => About {
                verb: lower(&parts.method),
                target: None,
                path,
                lasts: path == WATCH,
            },
        }
    }

    /// The same, as rules are asked about it.
    pub(super) fn attributes(&self) -> Attributes<'_> {
        let verb = &*self.verb;
        match self.target {
            Some(target) => Attributes {
                verb,
                group: &target.group,
                resource: &target.plural,
                subresource: &target.subresource,
                namespace: &target.namespace,
                name: &target.name,
                path: "",
            },
            None => Attributes {
                verb,
                path: self.path,
                ..Attributes::default()
            },
        }
    }

    /// Whether it changes something, or lets somebody in: what is kept by nobody, such as a review or a heartbeat, does not.
    pub(super) fn changes(&self) -> bool {
        if matches!(&*self.verb, "get" | "head" | "options" | "list" | "watch") {
            return false;
        }
        match self.target {
            Some(target) => {
                let review = matches!(target.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io");
                !review && target.subresource != "renew"
            }
            None => self.path != PLAN,
        }
    }
}

impl About<'_> {
    /// Whether it asks how the server is.
    pub(super) fn asks_health(&self) -> bool {
        let paths = ["/livez", "/readyz", "/healthz"];
        self.target.is_none() && paths.iter().any(|health| self.path.starts_with(health))
    }

    /// Whether it keeps or wins a lease, or looks at one to do so, as agents and leaders do all the time.
    pub(super) fn keeps_lease(&self) -> bool {
        let leases = |target: &Target| target.group == "coordination.k8s.io" && target.plural == "leases";
        self.target.is_some_and(leases) && !matches!(&*self.verb, "list" | "watch" | "deletecollection")
    }
}

fn lower(method: &Method) -> Cow<'static, str> {
    Cow::Borrowed(match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => return Cow::Owned(method.as_str().to_ascii_lowercase()),
    })
}

fn reads(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

fn watches(target: &Target, parts: &Parts) -> bool {
    let asked = parts.uri.query().filter(|query| query.contains("watch"));
    let flag = || Query::parse(asked).flag("watch").unwrap_or(false);
    asked.is_some() && target.subresource.is_empty() && reads(&parts.method) && flag()
}

/// The verb that is decided about. What runs commands in tasks is created, however it is asked for.
fn verb(target: &Target, parts: &Parts) -> Cow<'static, str> {
    let named = !target.name.is_empty();
    Cow::Borrowed(match parts.method {
        _ if Action::of(&target.subresource).is_some() => "create",
        Method::GET | Method::HEAD if watches(target, parts) => "watch",
        Method::GET | Method::HEAD if named => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => return lower(&parts.method),
    })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    /// `verb`, then `lasts`, `changes`, `health` and `lease` when they are so.
    fn told(method: &str, uri: &str) -> String {
        let (parts, ()) = Request::builder()
            .method(method)
            .uri(uri)
            .body(())
            .unwrap()
            .into_parts();
        let path = Path::parse(parts.uri.path());
        let about = About::of(&path, &parts);
        let flags = [
            (about.lasts, " lasts"),
            (about.changes(), " changes"),
            (about.asks_health(), " health"),
            (about.keeps_lease(), " lease"),
        ];
        let flags: String = flags.into_iter().filter_map(|(is, word)| is.then_some(word)).collect();
        format!("{}{flags}", about.attributes().verb)
    }

    #[test]
    fn method_and_path_say_what_is_asked_for() {
        let tasks = "/apis/muster.dev/v1/namespaces/d/tasks";
        let leases = "/apis/coordination.k8s.io/v1/namespaces/d/leases";
        for (method, uri, expect) in [
            ("GET", tasks.to_owned(), "list"),
            ("GET", format!("{tasks}?watch=1"), "watch lasts"),
            ("GET", format!("{tasks}?watch=0"), "list"),
            ("GET", format!("{tasks}/t"), "get"),
            ("HEAD", format!("{tasks}/t"), "get"),
            ("GET", format!("{tasks}/t/log?follow=true"), "get lasts"),
            ("GET", format!("{tasks}/t/exec?command=sh"), "create lasts changes"),
            ("POST", tasks.to_owned(), "create changes"),
            ("PUT", format!("{tasks}/t/status"), "update changes"),
            ("PATCH", format!("{tasks}/t"), "patch changes"),
            ("DELETE", format!("{tasks}/t"), "delete changes"),
            ("DELETE", tasks.to_owned(), "deletecollection changes"),
            ("POST", format!("{leases}/l/renew"), "create lease"),
            ("GET", leases.to_owned(), "list"),
            ("POST", leases.to_owned(), "create changes lease"),
            (
                "POST",
                "/apis/authentication.k8s.io/v1/tokenreviews".to_owned(),
                "create",
            ),
            ("GET", "/muster/v1/watch?resources=a".to_owned(), "get lasts"),
            ("PUT", "/muster/v1/plan".to_owned(), "put"),
            ("POST", "/muster/v1/join".to_owned(), "post changes"),
            ("GET", "/readyz".to_owned(), "get health"),
            ("BREW", "/pot".to_owned(), "brew changes"),
        ] {
            assert_eq!(told(method, &uri), expect, "{method} {uri}");
        }
    }
}
