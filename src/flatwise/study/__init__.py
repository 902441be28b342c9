"""From a task and its arms to records: trials, tasks, the store and the runner."""
