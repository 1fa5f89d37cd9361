//! Join tokens: made, listed and deleted by masters.

use axum::response::Response;
use http::StatusCode;
use jiff::SignedDuration;
use muster_api::join::{self, JoinRole, NewToken, TokenInfo, TokenList, TokenRequest};
use muster_api::names;
use muster_store::{Compare, Op, Page, Prefix};
use serde_json::json;

use super::Call;
use super::answer::json_value;
use crate::body::{self, ContentType};
use crate::error::{ApiError, Result};
use crate::keys;
use crate::membership::{self, Record};
use crate::registry::{Guard, GuardedTxn, Outcome};
use crate::state::State;

/// `POST /muster/v1/tokens`.
pub(super) async fn create(mut call: Call) -> Result<Response> {
    let content_type = ContentType::of(call.headers());
    let bytes = body::read(call.take_body()).await?;
    let decoded = body::object(content_type, &bytes)?;
    let request: TokenRequest = serde_json::from_value(decoded.value)
        .map_err(|error| ApiError::bad_request(format!("the body does not ask for a token: {error}")))?;
    let state = &call.state;
    let pki = state.membership.pki.as_ref().ok_or_else(no_authority)?;
    let info = info(state, request)?;
    let (id, secret) = membership::draw([state.env.uid(), state.env.uid()]);
    let info = TokenInfo { id: id.clone(), ..info };
    let record = Record {
        info: info.clone(),
        digest: membership::digest(&secret),
        key: None,
    };
    let key = keys::join_token(&id);
    let mut txn = GuardedTxn::new();
    txn.compare(Compare::absent(key.clone()), Guard::Subject);
    txn.write(Op::put(key, stored(&record)));
    if let Outcome::Lost(_) = state.commit(txn).await? {
        return Err(ApiError::unavailable("two tokens were given the same id; try again"));
    }
    let pin = pki.pin().map_err(|error| ApiError::internal(error.to_string()))?;
    let token = membership::token(&id, &secret, pin, &membership::servers(state));
    let token = NewToken {
        token: token.to_string(),
        info,
    };
    Ok(json_value(StatusCode::CREATED, &token))
}

fn info(state: &State, request: TokenRequest) -> Result<TokenInfo> {
    let seconds = match request.ttl_seconds {
        0 => join::TTL_DEFAULT,
        seconds if seconds <= join::TTL_MAX => seconds,
        _ => return Err(ApiError::unprocessable("ttlSeconds: a token lasts a week at most")),
    };
    if let Some(name) = &request.name {
        if request.role == JoinRole::Server {
            return Err(ApiError::unprocessable(
                "name: a token for a server is not bound to a name",
            ));
        }
        if let Some(problem) = names::dns_subdomain_problem(name) {
            return Err(ApiError::unprocessable(format!("name: {problem}")));
        }
    }
    let now = state.env.now();
    Ok(TokenInfo {
        id: String::new(),
        role: request.role,
        name: request.name,
        created_at: now,
        expires_at: now + SignedDuration::try_from(std::time::Duration::from_secs(seconds)).unwrap_or_default(),
        used: None,
    })
}

/// `GET /muster/v1/tokens`.
pub(super) async fn list(call: Call) -> Result<Response> {
    let now = call.state.env.now();
    let found = records(&call.state).await?.into_iter().map(|(record, _)| record.info);
    let items = found.filter(|info| info.expires_at > now).collect();
    Ok(json_value(StatusCode::OK, &TokenList { items }))
}

/// `DELETE /muster/v1/tokens/ID`.
pub(super) async fn delete(call: Call, id: &str) -> Result<Response> {
    let key = keys::join_token(id);
    let entry = call.state.store.get(&key).await?;
    let entry = entry.ok_or_else(|| ApiError::absent(format!("there is no token {id}")))?;
    let mut txn = GuardedTxn::new();
    txn.compare(Compare::modified(key.clone(), entry.mod_revision), Guard::Subject);
    txn.write(Op::delete(key));
    match call.state.commit(txn).await? {
        Outcome::Done(_) => Ok(json_value(
            StatusCode::OK,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
        )),
        Outcome::Lost(_) => Err(ApiError::unavailable(format!(
            "the token {id} was used just now; look again"
        ))),
    }
}

/// All tokens, with the revisions they were last written at.
async fn records(state: &State) -> Result<Vec<(Record, u64)>> {
    let listing = state
        .store
        .list(&Prefix::new(keys::JOIN_TOKENS), Page::default())
        .await?;
    let read = |entry: &muster_store::Entry| match serde_json::from_slice(&entry.value) {
        Ok(record) => Some((record, entry.mod_revision)),
        Err(error) => {
            tracing::error!(key = %entry.key, %error, "what the store holds here is no token");
            None
        }
    };
    Ok(listing.entries.iter().filter_map(read).collect())
}

/// Deletes the tokens whose time is over.
pub(crate) async fn sweep(state: &State) -> Result<()> {
    let now = state.env.now();
    for (record, revision) in records(state).await? {
        if record.info.expires_at <= now {
            let key = keys::join_token(&record.info.id);
            let mut txn = GuardedTxn::new();
            txn.compare(Compare::modified(key.clone(), revision), Guard::Subject);
            txn.write(Op::delete(key));
            // Whatever was written in between is looked at again next time.
            state.commit(txn).await?;
        }
    }
    Ok(())
}

/// A record as the store has it.
pub(super) fn stored(record: &Record) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record is plain data")
}

/// 404: this server cannot let anybody in.
pub(super) fn no_authority() -> ApiError {
    ApiError::absent("this server has no certificate authority, so nobody can join through it")
}
