//! Frameworks: checked by their own type.

use muster_api::v1::Framework;
use muster_api::validation::Violation;
use serde_json::Value;

use super::Strategy;
use crate::schema::typed;

pub(super) struct Frameworks;

impl Strategy for Frameworks {
    fn validate(&self, object: &Value) -> Vec<Violation> {
        typed::<Framework>(object).map_or_else(|violation| vec![violation], |framework| framework.validate())
    }
}
