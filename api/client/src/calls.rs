//! The calls that are Muster's own: offers, and the reasons.

use http::Method;
use muster_api::wire::{
    AcceptRequest, AcceptResult, AgentOffers, AgentOffersResult, DeclineRequest, PlanReport, WhyTask,
};
use serde_json::Value;

use crate::{Call, Client, Result, segment};

fn offer(namespace: &str, name: &str, what: &str) -> String {
    let (namespace, name) = (segment(namespace), segment(name));
    format!("/apis/muster.dev/v1/namespaces/{namespace}/offers/{name}/{what}")
}

impl Client {
    /// Accepts an offer with tasks. All or nothing.
    pub async fn accept(&self, namespace: &str, name: &str, request: &AcceptRequest) -> Result<AcceptResult> {
        let call = Call::new(
            Method::POST,
            offer(namespace, name, "accept"),
            "the result of an accept",
        );
        self.call(call.json(request)?).await
    }

    /// Declines an offer. The answer is the offer as it is now.
    pub async fn decline(&self, namespace: &str, name: &str, request: &DeclineRequest) -> Result<Value> {
        let call = Call::new(Method::POST, offer(namespace, name, "decline"), "a declined offer");
        self.call(call.json(request)?).await
    }

    /// Changes the offers of one agent in one transaction. For the fenced leader.
    pub async fn agent_offers(&self, agent: &str, request: &AgentOffers) -> Result<AgentOffersResult> {
        let path = format!("/apis/muster.dev/v1/agents/{}/offers", segment(agent));
        let call = Call::new(Method::POST, path, "the result of a change of offers");
        self.call(call.json(request)?).await
    }

    /// Publishes the reasons of the last allocation pass. For the fenced leader.
    pub async fn put_plan(&self, report: &PlanReport) -> Result<()> {
        let call = Call::new(Method::PUT, "/muster/v1/plan".to_owned(), "the answer to a plan");
        self.call::<Value>(call.json(report)?).await.map(drop)
    }

    /// The reasons of the last allocation pass.
    pub async fn get_plan(&self) -> Result<PlanReport> {
        self.call(Call::new(Method::GET, "/muster/v1/plan".to_owned(), "a plan"))
            .await
    }

    /// Why a task is not placed.
    pub async fn why(&self, namespace: &str, task: &str) -> Result<WhyTask> {
        let path = format!("/muster/v1/why/{}/{}", segment(namespace), segment(task));
        self.call(Call::new(Method::GET, path, "the reasons of a task")).await
    }
}
