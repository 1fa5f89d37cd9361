//! `mctl token`: what lets machines join.

use clap::{Args, Subcommand};
use http::Method;
use muster_api::Timestamp;
use muster_api::join::{JoinRole, NewToken, TokenInfo, TokenList, TokenRequest};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::{Exit, Failure, Outcome};
use crate::rest::{JSON, Payload, escape};
use crate::session::{self, Session, Terminal};
use crate::table;

const TOKENS: &str = "/muster/v1/tokens";

/// `mctl token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it; it is shown this once.
    Create(TokenCreateArgs),
    /// List the tokens, without their secrets.
    List,
    /// Delete tokens.
    Delete {
        /// Their ids: what stands between the first two dots.
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
}

/// `mctl token create`.
#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// The only name that an agent can join under with it [default: any that is free].
    #[arg(long, value_name = "NAME", conflicts_with = "server")]
    pub agent: Option<String>,
    /// For one more server, which is given the authority's key and everybody's tokens.
    #[arg(long)]
    pub server: bool,
    /// How long it lasts, such as 30s or 1h; a week at most.
    #[arg(long, default_value = "15m", value_name = "SPAN")]
    pub ttl: String,
}

/// Runs the command.
pub async fn run(session: &Session, command: TokenCommand, terminal: &mut Terminal) -> Outcome {
    match command {
        TokenCommand::Create(args) => create(session, args, terminal).await?,
        TokenCommand::List => {
            let tokens: TokenList = read(session.rest.get(TOKENS).await?)?;
            terminal.text(list(&tokens.items))?;
        }
        TokenCommand::Delete { ids } => {
            for id in &ids {
                let path = format!("{TOKENS}/{}", escape(id));
                session.rest.call(Method::DELETE, &path, JSON, None).await?;
                terminal.line(format!("token {id} deleted"))?;
            }
        }
    }
    Ok(Exit::Done)
}

fn read<T: DeserializeOwned>(value: Value) -> Outcome<T> {
    serde_json::from_value(value).map_err(|error| Failure::new(format!("the server's answer makes no sense: {error}")))
}

async fn create(session: &Session, args: TokenCreateArgs, terminal: &mut Terminal) -> Outcome<()> {
    let ttl = session::span("--ttl", &args.ttl)?;
    let ttl = ttl.ok_or_else(|| Failure::new("--ttl: say how long the token lasts, such as 15m; a week at most"))?;
    let role = if args.server { JoinRole::Server } else { JoinRole::Agent };
    let request = TokenRequest {
        role,
        name: args.agent,
        ttl_seconds: ttl.as_secs().max(1),
    };
    let request = serde_json::to_value(&request).expect("a request is plain data");
    let payload = Some(Payload::json(&request));
    let answer = session.rest.call(Method::POST, TOKENS, JSON, payload).await?;
    let made: NewToken = read(answer.value)?;
    // The word alone is the result, so that a script can take it.
    terminal.line(&made.token)?;
    if terminal.interactive {
        let command = match role {
            JoinRole::Agent => "mctl agent --join TOKEN",
            JoinRole::Server => "mctl server --etcd URL --join TOKEN",
        };
        terminal.note(format!(
            "good for one machine until {}: {command}",
            time(made.info.expires_at)
        ));
    }
    Ok(())
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

fn list(tokens: &[TokenInfo]) -> String {
    let row = |token: &TokenInfo| {
        let used = token
            .used
            .as_ref()
            .map(|used| format!("{} at {}", used.by, time(used.at)));
        vec![
            token.id.clone(),
            format!("{:?}", token.role).to_lowercase(),
            token.name.clone().unwrap_or_else(|| "<any>".to_owned()),
            time(token.expires_at),
            used.unwrap_or_else(|| "<no>".to_owned()),
        ]
    };
    let head = ["ID", "FOR", "NAME", "EXPIRES", "USED"].map(str::to_owned);
    table::align(&head, tokens.iter().map(row).collect(), true)
}

#[cfg(test)]
mod tests {
    use muster_api::join::TokenUse;

    use super::*;

    #[test]
    fn the_list_says_for_what_until_when_and_by_whom() {
        let at: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let token = TokenInfo {
            id: "0a".to_owned(),
            role: JoinRole::Agent,
            name: Some("a1".to_owned()),
            created_at: at,
            expires_at: at,
            used: Some(TokenUse {
                by: "a1".to_owned(),
                at,
            }),
        };
        let expect = "ID   FOR     NAME   EXPIRES                USED\n\
                      0a   agent   a1     2026-01-01 00:00:00Z   a1 at 2026-01-01 00:00:00Z\n";
        assert_eq!(list(&[token]), expect);
    }
}
