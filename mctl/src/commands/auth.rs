//! `mctl auth`: who one is, and what one may do.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use crate::discovery::Catalogue;
use crate::failure::{Exit, Failure, Outcome};
use crate::output;
use crate::rest::{JSON, Payload};
use crate::session::{Session, Terminal};
use crate::table;

const AUTHORIZATION: &str = "/apis/authorization.k8s.io/v1";
const WHOAMI: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// `mctl auth`.
#[derive(Debug, Subcommand)]
pub enum AuthCommand {
    /// Say whether something is allowed; the exit code is 1 when it is not.
    CanI(CanIArgs),
    /// Say who the server takes one for.
    Whoami {
        /// yaml or json.
        #[arg(short = 'o', long, value_name = "FORMAT")]
        output: Option<String>,
    },
}

/// `mctl auth can-i`.
#[derive(Debug, Args)]
pub struct CanIArgs {
    /// What is to be done: get, list, watch, create, update, patch, delete, deletecollection, `*` or another verb of a role.
    #[arg(value_name = "VERB", required_unless_present = "list")]
    pub verb: Option<String>,
    /// With what: KIND, KIND/NAME, or a path that begins with a slash.
    #[arg(value_name = "KIND", required_unless_present = "list")]
    pub what: Option<String>,
    /// With the object of this name.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// With this part of objects, such as `log`.
    #[arg(long, value_name = "NAME")]
    pub subresource: Option<String>,
    /// In all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Everything that is allowed in the namespace.
    #[arg(long, conflicts_with_all = ["verb", "what", "name", "subresource", "all_namespaces"])]
    pub list: bool,
    /// Print nothing; the exit code says it.
    #[arg(short = 'q', long)]
    pub quiet: bool,
}

/// Runs the command.
pub async fn run(session: &Session, command: AuthCommand, terminal: &mut Terminal) -> Outcome {
    match command {
        AuthCommand::Whoami { output } => whoami(session, output.as_deref(), terminal).await,
        AuthCommand::CanI(args) if args.list => list(session, terminal).await,
        AuthCommand::CanI(args) => can_i(session, args, terminal).await,
    }
}

async fn ask(session: &Session, path: &str, body: &Value) -> Outcome<Value> {
    let payload = Some(Payload::json(body));
    Ok(session.rest.call(Method::POST, path, JSON, payload).await?.value)
}

async fn whoami(session: &Session, format: Option<&str>, terminal: &mut Terminal) -> Outcome {
    let answer = ask(session, WHOAMI, &json!({})).await?;
    match format {
        None => {
            let info = &answer["status"]["userInfo"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let groups: Vec<String> = info["groups"].as_array().into_iter().flatten().map(text).collect();
            terminal.line(format!("user    {}", text(&info["username"])))?;
            terminal.line(format!("groups  {}", groups.join(", ")))?;
        }
        Some("json") => terminal.text(output::pretty(&answer))?,
        Some("yaml") => terminal.text(output::yaml(&answer))?,
        Some(other) => return Err(Failure::new(format!("-o {other}: there are yaml and json"))),
    }
    Ok(Exit::Done)
}

/// What a review asks about.
fn asked(args: &CanIArgs, catalogue: Option<&Catalogue>, namespace: &str) -> Value {
    let verb = args.verb.as_deref().unwrap_or_default();
    let what = args.what.as_deref().unwrap_or_default();
    if what.starts_with('/') {
        return json!({"nonResourceAttributes": {"verb": verb, "path": what}});
    }
    let (word, name) = what.split_once('/').unwrap_or((what, ""));
    let name = args.name.as_deref().unwrap_or(name);
    let known = catalogue.and_then(|catalogue| catalogue.find(word).ok());
    // A kind that is not served yet may be in a role all the same.
    let (plural, group) = match known {
        Some(kind) => (kind.plural.as_str(), kind.group.as_str()),
        None => word.split_once('.').unwrap_or((word, "")),
    };
    let namespaced = known.is_none_or(|kind| kind.namespaced) && !args.all_namespaces;
    json!({"resourceAttributes": {
        "verb": verb,
        "group": group,
        "resource": plural,
        "subresource": args.subresource.as_deref().unwrap_or_default(),
        "namespace": if namespaced { namespace } else { "" },
        "name": name,
    }})
}

async fn can_i(session: &Session, args: CanIArgs, terminal: &mut Terminal) -> Outcome {
    let is_path = args.what.as_deref().is_some_and(|what| what.starts_with('/'));
    let catalogue = if is_path {
        None
    } else {
        Some(session.catalogue().await?)
    };
    let review = json!({"spec": asked(&args, catalogue.as_ref(), &session.namespace)});
    let path = format!("{AUTHORIZATION}/selfsubjectaccessreviews");
    let status = ask(session, &path, &review).await?["status"].take();
    let allowed = status["allowed"] == true;
    if !args.quiet {
        let reason = status["reason"]
            .as_str()
            .filter(|reason| !allowed && !reason.is_empty());
        let reason = reason.map(|reason| format!(" - {reason}")).unwrap_or_default();
        terminal.line(format!("{}{reason}", if allowed { "yes" } else { "no" }))?;
    }
    Ok(if allowed { Exit::Done } else { Exit::Error })
}

async fn list(session: &Session, terminal: &mut Terminal) -> Outcome {
    let review = json!({"spec": {"namespace": session.namespace}});
    let path = format!("{AUTHORIZATION}/selfsubjectrulesreviews");
    let status = ask(session, &path, &review).await?["status"].take();
    let head = ["RESOURCES", "NON-RESOURCE URLS", "RESOURCE NAMES", "VERBS"].map(str::to_owned);
    terminal.text(table::align(&head, rows(&status), true))?;
    if let Some(problem) = status["evaluationError"].as_str() {
        terminal.note(format!("warning: the list may be incomplete: {problem}"));
    }
    Ok(Exit::Done)
}

/// A row for each kind or path, with what may be done with it.
fn rows(status: &Value) -> Vec<Vec<String>> {
    let texts = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let listed = |texts: Vec<String>| format!("[{}]", texts.join(" "));
    let mut rows = Vec::new();
    for rule in status["resourceRules"].as_array().into_iter().flatten() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                let name = if group.is_empty() {
                    resource
                } else {
                    format!("{resource}.{group}")
                };
                let names = listed(texts(&rule["resourceNames"]));
                rows.push(vec![name, "[]".to_owned(), names, listed(texts(&rule["verbs"]))]);
            }
        }
    }
    rows.sort();
    let mut paths = Vec::new();
    for rule in status["nonResourceRules"].as_array().into_iter().flatten() {
        for path in texts(&rule["nonResourceURLs"]) {
            let verbs = listed(texts(&rule["verbs"]));
            paths.push(vec![String::new(), format!("[{path}]"), "[]".to_owned(), verbs]);
        }
    }
    paths.sort();
    rows.extend(paths);
    rows
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: AuthCommand,
    }

    fn can(line: &str) -> CanIArgs {
        match Line::parse_from(line.split(' ')).command {
            AuthCommand::CanI(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_question_names_a_kind_an_object_or_a_path() {
        let ask = |line: &str| asked(&can(line), None, "team");
        assert_eq!(
            ask("auth can-i get widgets.example.com/w --subresource status"),
            json!({"resourceAttributes": {
                "verb": "get", "group": "example.com", "resource": "widgets", "subresource": "status",
                "namespace": "team", "name": "w",
            }})
        );
        assert_eq!(ask("auth can-i list secrets -A")["resourceAttributes"]["namespace"], "");
        assert_eq!(
            ask("auth can-i get /metrics"),
            json!({"nonResourceAttributes": {"verb": "get", "path": "/metrics"}})
        );
        assert!(Line::try_parse_from(["auth", "can-i"]).is_err());
        assert!(can("auth can-i --list").list);
    }

    #[test]
    fn the_list_has_kinds_first_and_paths_behind() {
        let status = json!({
            "resourceRules": [{"verbs": ["get"], "apiGroups": ["", "muster.dev"], "resources": ["tasks"], "resourceNames": ["t"]}],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/version"]}],
        });
        assert_eq!(
            rows(&status),
            [
                ["tasks", "[]", "[t]", "[get]"],
                ["tasks.muster.dev", "[]", "[t]", "[get]"],
                ["", "[/version]", "[]", "[get]"],
            ]
        );
    }
}
