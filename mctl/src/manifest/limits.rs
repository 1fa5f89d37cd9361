//! How much a manifest may hold. What is over a limit is refused with its place; nothing is cut off silently.

/// The largest file: as large as the largest request that the API server takes.
pub const FILE_BYTES_MAX: u64 = 3 << 20;
/// The most bytes of all files of one call: ten times the largest, so that reading never takes more than some 300 MiB of memory
/// (a byte of YAML becomes at most about ten of tree).
pub const TOTAL_BYTES_MAX: u64 = 10 * FILE_BYTES_MAX;
/// The most documents of one file, items of lists included.
pub const DOCUMENTS_MAX: usize = 1000;
/// The deepest nesting: that of the API server's JSON.
pub const DEPTH_MAX: usize = 64;
/// The most nodes of one document that uses aliases, each counted as often as it is used: some 3 MiB of JSON at 32 bytes each,
/// the largest request.
pub const ALIAS_NODES_MAX: usize = 100_000;
/// So many bytes of text weigh as much as a node.
pub const NODE_BYTES: usize = 32;
/// The most directories inside each other that `-R` follows; ends loops of links.
pub const DIRECTORIES_MAX: usize = 16;
/// The most mistakes that are collected from one file.
pub const MISTAKES_MAX: usize = 100;
