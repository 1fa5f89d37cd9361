//! The planner runtime (view, queue, driver, executor, leadership) and the planners.
