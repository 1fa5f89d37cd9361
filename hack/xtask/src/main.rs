//! Checks that hold the tree together.
fn main() {}
