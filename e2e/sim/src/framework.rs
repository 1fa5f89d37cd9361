//! The external framework of the simulation: it answers offers as a platform team's own scheduler would, and twice at once.

use futures::future::join;
use kube::api::{Api, ListParams, PostParams};
use muster_api::duration::Span;
use muster_api::v1::{Framework, Offer, OfferPhase, Quota};
use muster_api::wire::{AcceptRequest, DeclineRequest};
use muster_client::{Client, Error};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;

use crate::invariants::LABEL_LAUNCH;
use crate::workload::task;

/// What it is called.
pub const EXTERNAL: &str = "mine";

/// A launch of which it is not known whether it happened.
struct Open {
    offer: String,
    request: AcceptRequest,
}

/// See the module.
pub struct Scheduler {
    client: Client,
    launches: usize,
    open: Vec<Open>,
}

impl Scheduler {
    /// A scheduler that speaks through this client.
    pub fn new(client: Client) -> Scheduler {
        Scheduler {
            client,
            launches: 0,
            open: Vec::new(),
        }
    }

    /// Makes the framework, and the quota of its role if there shall be one, in good weather.
    pub async fn prepare(&self, quota: bool) {
        let framework: Framework = serde_json::from_value(json!({
            "apiVersion": "muster.dev/v1",
            "kind": "Framework",
            "metadata": { "name": EXTERNAL, "namespace": "default" },
            "spec": { "scheduler": "External", "demand": { "minimum": { "cpus": "0.5" }, "maxOffers": 2 } },
        }))
        .expect("a framework");
        let api: Api<Framework> = Api::namespaced(self.client.kube().clone(), "default");
        api.create(&PostParams::default(), &framework)
            .await
            .expect("nothing is in the way yet");
        if quota {
            let quota: Quota = serde_json::from_value(json!({
                "apiVersion": "muster.dev/v1",
                "kind": "Quota",
                "metadata": { "name": "default" },
                "spec": { "role": "default", "limit": { "cpus": "5", "gpus": "3" } },
            }))
            .expect("a quota");
            let api: Api<Quota> = Api::all(self.client.kube().clone());
            api.create(&PostParams::default(), &quota)
                .await
                .expect("nothing is in the way yet");
        }
    }

    /// Tries again what may have happened, then answers every open offer: half are accepted, by two schedulers at once that know nothing
    /// of each other, or by one that knows what it does; the others are declined.
    pub async fn answer(&mut self, random: &mut StdRng) {
        // Once where it was, and once more with another offer.
        for _ in 0..2 * self.open.len() {
            if self.open.is_empty() {
                break;
            }
            let launch = self.open.remove(0);
            self.try_again(launch).await;
        }
        let api: Api<Offer> = Api::namespaced(self.client.kube().clone(), "default");
        let mine = ListParams::default().fields(&format!("spec.framework={EXTERNAL}"));
        let Ok(offers) = api.list(&mine).await else { return };
        for offer in offers.items.iter().filter(|offer| offer.phase() == OfferPhase::Open) {
            let name = offer.metadata.name.clone().unwrap_or_default();
            match random.random_range(0..4) {
                0 => {
                    let (first, second) = (self.launch(random, offer, None), self.launch(random, offer, None));
                    let (one, two) = (self.client.clone(), self.client.clone());
                    let both = join(
                        one.accept("default", &name, &first),
                        two.accept("default", &name, &second),
                    );
                    let _ = both.await;
                }
                1 => {
                    let label = format!("launch-{}", self.launches);
                    let request = self.launch(random, offer, Some(&label));
                    self.try_again(Open { offer: name, request }).await;
                }
                _ => {
                    let refuse = Some(Span::from_millis(random.random_range(0..3000)));
                    let _ = self.client.decline("default", &name, &DeclineRequest { refuse }).await;
                }
            }
        }
    }

    /// What is known to have happened, or not to, is done with; the rest is tried again, as it was. A launch that found its offer gone is
    /// tried with another one.
    async fn try_again(&mut self, launch: Open) {
        let (offer, request) = (launch.offer.clone(), launch.request.clone());
        // Remembered before it is tried: whoever asked for it may stop waiting.
        self.open.push(launch);
        let answer = self.client.accept("default", &offer, &request).await;
        let Some(launch) = self.open.pop() else { return };
        match answer {
            Ok(_) => {}
            Err(Error::NotFound(_) | Error::Gone(_) | Error::Conflict(_)) => self.next_offer(launch).await,
            Err(error) if error.is_retryable() => self.open.push(launch),
            Err(_) => {}
        }
    }

    async fn next_offer(&mut self, launch: Open) {
        let api: Api<Offer> = Api::namespaced(self.client.kube().clone(), "default");
        let mine = ListParams::default().fields(&format!("spec.framework={EXTERNAL}"));
        let Ok(offers) = api.list(&mine).await else {
            return self.open.push(launch);
        };
        let Some(offer) = offers.items.iter().find(|offer| offer.phase() == OfferPhase::Open) else {
            return;
        };
        let mut request = launch.request;
        self.launches += 1;
        for task in &mut request.launch {
            task["metadata"]["name"] = json!(format!("x{}", self.launches));
        }
        self.open.push(Open {
            offer: offer.metadata.name.clone().unwrap_or_default(),
            request,
        });
    }

    fn launch(&mut self, random: &mut StdRng, offer: &Offer, label: Option<&str>) -> AcceptRequest {
        self.launches += 1;
        let mut launch = task(random, &format!("x{}", self.launches), EXTERNAL);
        launch["spec"]["role"] = offer.spec.role.clone().into();
        launch["spec"]["resources"] = json!({ "cpus": "0.5", "memory": "16Mi" });
        if let Some(label) = label {
            launch["metadata"]["labels"] = json!({ LABEL_LAUNCH: label });
            // A key is remembered for as long as its task is there.
            if let Some(spec) = launch["spec"].as_object_mut() {
                spec.remove("ttlAfterFinished");
            }
        }
        let idempotency_key = label.map(str::to_owned);
        AcceptRequest {
            launch: vec![launch],
            idempotency_key,
            ..AcceptRequest::default()
        }
    }
}
