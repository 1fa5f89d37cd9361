//! Machines join, and their certificates are renewed.
//!
//! A token is used up in the store before anything is handed out for it. Whoever repeats a request whose answer was lost, with the same
//! key and within [`REPEAT`], is given its certificate again; everybody else is told that the token was used, and by whom.

use axum::response::Response;
use http::StatusCode;
use jiff::SignedDuration;
use muster_api::join::{JoinAnswer, JoinRequest, JoinRole, RenewRequest, ServerSecrets, Servers, TokenUse};
use muster_api::names;
use muster_store::{Compare, Entry, Op};

use super::answer::json_value;
use super::tokens::{no_authority, stored};
use super::{Call, resource};
use crate::body;
use crate::error::{ApiError, Result};
use crate::keys;
use crate::membership::{self, Record};
use crate::registry::{Guard, GuardedTxn, Outcome};
use crate::state::State;
use crate::tls::Pki;

/// How long a request may be repeated.
const REPEAT: SignedDuration = SignedDuration::from_mins(1);
/// A request is a few hundred bytes and a CSR of about as many.
const REQUEST_BYTES: usize = 16 << 10;
/// How often a token is looked at again that somebody else wrote to.
const ATTEMPTS: usize = 4;
/// The longest name whose certificate can be verified: with what follows it, 253 characters.
const NAME_CHARS: usize = 200;
/// The longest part of a host's name.
const LABEL_CHARS: usize = 63;

/// `POST /muster/v1/join`.
pub(super) async fn join(mut call: Call) -> Result<Response> {
    let address = call.peer().map(|peer| peer.address.ip());
    let failures = &call.state.membership.failures;
    if failures.blocks(address, call.state.env.now()) {
        let message = "too many attempts to join with tokens that are not valid; wait a minute";
        return Err(ApiError::too_many_requests(message, 60));
    }
    let bytes = body::read_at_most(call.take_body(), REQUEST_BYTES).await?;
    let request: JoinRequest = parse(&bytes)?;
    resource::catch_up(&call).await?;
    match let_in(&call.state, &request).await {
        Ok(answer) => {
            tracing::info!(token = request.id, role = ?request.role, name = request.name, "joined");
            Ok(json_value(StatusCode::OK, &answer))
        }
        Err(Refused::Unknown) => {
            call.state.membership.failures.count(address, call.state.env.now());
            tracing::warn!(
                ?address,
                token = request.id,
                "somebody tried to join with a token that is not valid"
            );
            Err(ApiError::forbidden(
                "the join token is not valid: it has expired, was deleted, or belongs to another cluster; make a new one with `mctl \
                 token create`",
            ))
        }
        Err(Refused::Because(error)) => Err(error),
    }
}

/// `POST /muster/v1/renew`.
pub(super) async fn renew(mut call: Call) -> Result<Response> {
    let shown = call.peer().and_then(|peer| peer.certificate.as_ref());
    let name = shown
        .filter(|shown| shown.user.clone().authenticated() == call.user)
        .and_then(|shown| shown.user.agent_name())
        .map(str::to_owned);
    let name = name.ok_or_else(|| ApiError::forbidden("only an agent that shows its certificate can renew it"))?;
    let bytes = body::read_at_most(call.take_body(), REQUEST_BYTES).await?;
    let request: RenewRequest = parse(&bytes)?;
    let pki = call.state.membership.pki.as_ref().ok_or_else(no_authority)?;
    let answer = agent_answer(&call.state, pki, &name, &request.csr)?;
    Ok(json_value(StatusCode::OK, &answer))
}

/// `GET /muster/v1/endpoints`.
pub(super) fn endpoints(state: &State) -> Response {
    let mut servers = membership::servers(state);
    servers.sort_by(|a, b| a.name.cmp(&b.name));
    json_value(StatusCode::OK, &Servers { servers })
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let decoded = body::json(bytes)?;
    serde_json::from_value(decoded.value).map_err(|error| ApiError::bad_request(format!("the body: {error}")))
}

enum Refused {
    /// There is no such token, or its secret is another one.
    Unknown,
    /// The token is good, and something else is not.
    Because(ApiError),
}

impl<E: Into<ApiError>> From<E> for Refused {
    fn from(error: E) -> Refused {
        Refused::Because(error.into())
    }
}

async fn let_in(state: &State, request: &JoinRequest) -> Result<JoinAnswer, Refused> {
    let pki = state.membership.pki.as_ref().ok_or_else(no_authority)?;
    let plain = !request.id.is_empty() && request.id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    for _ in 0..ATTEMPTS {
        let entry = match plain {
            true => state.store.get(&keys::join_token(&request.id)).await?,
            false => None,
        };
        let (entry, record) = known(entry, request)?;
        let now = state.env.now();
        if record.info.expires_at <= now {
            return Err(Refused::Unknown);
        }
        suits(&record, request)?;
        let key = Pki::key_of_request(&request.csr).map_err(|_| csr_problem())?;
        match &record.info.used {
            Some(used) if record.key.as_ref() == Some(&key) && now.duration_since(used.at) <= REPEAT => {
                return Ok(answer(state, pki, request)?);
            }
            Some(used) => {
                let message = format!(
                    "the join token {} was used by {} at {}, and a token is used once; make a new one with `mctl token create`",
                    request.id, used.by, used.at
                );
                return Err(ApiError::forbidden(message).into());
            }
            None => {}
        }
        if request.role == JoinRole::Agent {
            name_is_free(state, request)?;
        }
        if use_up(state, &entry, record, request, key).await? {
            return Ok(answer(state, pki, request)?);
        }
    }
    Err(ApiError::unavailable("the join token is being used by others; try again").into())
}

/// The token, if the request has its secret.
fn known(entry: Option<Entry>, request: &JoinRequest) -> Result<(Entry, Record), Refused> {
    let record = |entry: &Entry| serde_json::from_slice::<Record>(&entry.value).ok();
    let found = entry.and_then(|entry| record(&entry).map(|record| (entry, record)));
    let digest = membership::digest(&request.secret);
    match found {
        Some((entry, record)) if membership::same(&record.digest, &digest) => Ok((entry, record)),
        _ => Err(Refused::Unknown),
    }
}

/// Whether the token is for this.
fn suits(record: &Record, request: &JoinRequest) -> Result<()> {
    let info = &record.info;
    if info.role != request.role {
        let word = |role: JoinRole| match role {
            JoinRole::Agent => "an agent",
            JoinRole::Server => "a server",
        };
        let message = format!(
            "the join token is for {}, not for {}",
            word(info.role),
            word(request.role)
        );
        return Err(ApiError::forbidden(message));
    }
    if let Some(problem) = names::dns_subdomain_problem(&request.name) {
        return Err(ApiError::unprocessable(format!("name: {problem}")));
    }
    let long = request.name.split('.').any(|label| label.len() > LABEL_CHARS) || request.name.len() > NAME_CHARS;
    if long {
        let message = format!("name: at most {NAME_CHARS} characters, and at most {LABEL_CHARS} between dots");
        return Err(ApiError::unprocessable(message));
    }
    match &info.name {
        Some(name) if *name != request.name => Err(ApiError::forbidden(format!(
            "the join token is for the agent {name}, not for {}",
            request.name
        ))),
        _ => Ok(()),
    }
}

/// A name stays with its machine, as long as the Agent object says so or its session lasts.
fn name_is_free(state: &State, request: &JoinRequest) -> Result<()> {
    let name = &request.name;
    let agents = &state.resources.muster("agents").resource;
    let agent = state.hub.get(&keys::object(agents, "", name)).map(|agent| agent.json());
    let owner = agent
        .as_ref()
        .and_then(|agent| agent["metadata"]["annotations"][names::ANNOTATION_MACHINE].as_str());
    let lease = state.hub.get(&keys::lease(names::NAMESPACE_AGENTS, name));
    let holder = lease.map(|lease| {
        lease.json()["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    });
    let holder = holder
        .as_deref()
        .map(|holder| holder.split('/').next().unwrap_or_default());
    let foreign = |other: Option<&str>| other.is_some_and(|other| other != request.machine);
    if foreign(owner) || foreign(holder) {
        let message = format!(
            "the name {name} belongs to an agent on another machine, or with another data directory; join with another --name, or, when \
             that machine is gone for good, delete it first: mctl delete agent {name}"
        );
        return Err(ApiError::conflict(agents, name, message));
    }
    Ok(())
}

/// Marks the token as used; `false`: somebody else wrote to it in between.
async fn use_up(state: &State, entry: &Entry, record: Record, request: &JoinRequest, key: String) -> Result<bool> {
    let mut record = record;
    record.info.used = Some(TokenUse {
        by: request.name.clone(),
        at: state.env.now(),
    });
    record.key = Some(key);
    let mut txn = GuardedTxn::new();
    txn.compare(Compare::modified(entry.key.clone(), entry.mod_revision), Guard::Subject);
    txn.write(Op::put(entry.key.clone(), stored(&record)));
    Ok(matches!(state.commit(txn).await?, Outcome::Done(_)))
}

fn csr_problem() -> ApiError {
    ApiError::bad_request("csr: this is not a certificate signing request (PEM) that can be used")
}

fn answer(state: &State, pki: &Pki, request: &JoinRequest) -> Result<JoinAnswer> {
    match request.role {
        JoinRole::Agent => agent_answer(state, pki, &request.name, &request.csr),
        JoinRole::Server => Ok(JoinAnswer {
            name: request.name.clone(),
            certificate: String::new(),
            ca: pki.ca_pem().to_owned(),
            endpoints: endpoints_of(state),
            secrets: Some(ServerSecrets {
                ca_key: pki.key_pem().to_owned(),
                tokens: state
                    .membership
                    .tokens
                    .as_ref()
                    .map(|tokens| tokens.text())
                    .unwrap_or_default(),
                encryption_key: state.membership.encryption_key.clone(),
            }),
        }),
    }
}

fn agent_answer(state: &State, pki: &Pki, name: &str, csr: &str) -> Result<JoinAnswer> {
    let signed = pki.sign_agent(name, csr, state.membership.agent_life, &*state.env);
    Ok(JoinAnswer {
        name: name.to_owned(),
        certificate: signed.map_err(|_| csr_problem())?,
        ca: pki.ca_pem().to_owned(),
        endpoints: endpoints_of(state),
        secrets: None,
    })
}

fn endpoints_of(state: &State) -> Vec<String> {
    let servers = membership::servers(state).into_iter();
    servers.flat_map(|server| server.endpoints).collect()
}
