//! Service accounts: names that programs act under. Their tokens are in [`crate::accounts`].

use super::Strategy;

pub(super) struct ServiceAccounts;

impl Strategy for ServiceAccounts {
    fn unconditional_update(&self) -> bool {
        true
    }

    fn counts_generations(&self) -> bool {
        false
    }
}
