//! Quotas: checked by their own type.

use muster_api::v1::Quota;
use muster_api::validation::Violation;
use serde_json::Value;

use super::Strategy;
use crate::schema::typed;

pub(super) struct Quotas;

impl Strategy for Quotas {
    fn validate(&self, object: &Value) -> Vec<Violation> {
        typed::<Quota>(object).map_or_else(|violation| vec![violation], |quota| quota.validate())
    }
}
