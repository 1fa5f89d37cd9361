//! What may be asked for when offers are accepted.

use muster_api::names;
use muster_api::validation::{Reason, Violation};
use muster_api::wire::AcceptRequest;

use crate::error::{ApiError, Result};
use crate::limits;

/// Says which field of the request is wrong.
pub(super) fn refuse(name: &str, field: &str, message: String) -> ApiError {
    let violation = Violation {
        reason: Reason::FieldValueInvalid,
        field: field.to_owned(),
        message,
    };
    ApiError::invalid("AcceptRequest", names::GROUP, name, vec![violation])
}

/// So many tasks and offers, and none twice.
pub(super) fn check_size(name: &str, request: &AcceptRequest) -> Result<()> {
    let count = request.launch.len() + request.bind.len();
    if count == 0 || count > limits::TASKS_PER_ACCEPT {
        let message = format!(
            "Invalid value: \"{count}\": from 1 to {} tasks; decline an offer to take none",
            limits::TASKS_PER_ACCEPT
        );
        return Err(refuse(name, "launch", message));
    }
    let offers = &request.offers;
    if offers.len() >= limits::OFFERS_PER_ACCEPT {
        let message = format!(
            "Too many: at most {} offers can be accepted together",
            limits::OFFERS_PER_ACCEPT
        );
        return Err(refuse(name, "offers", message));
    }
    let twice = |names: &[String]| (1..names.len()).find(|index| names[..*index].contains(&names[*index]));
    let all: Vec<String> = [name.to_owned()].into_iter().chain(offers.iter().cloned()).collect();
    if let Some(index) = twice(&all) {
        return Err(refuse(
            name,
            &format!("offers[{}]", index - 1),
            format!("Duplicate value: \"{}\"", all[index]),
        ));
    }
    if let Some(index) = twice(&request.bind) {
        return Err(refuse(
            name,
            &format!("bind[{index}]"),
            format!("Duplicate value: \"{}\"", request.bind[index]),
        ));
    }
    Ok(())
}
