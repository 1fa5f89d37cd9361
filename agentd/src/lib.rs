//! The agent: a pure plan from tasks and containers to actions, an executor, devices, presence, status and the node server.
