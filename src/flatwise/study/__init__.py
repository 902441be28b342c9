"""Comparisons and studies: tasks, arms, the plan, the engine and executors, the store, and the analysis."""
