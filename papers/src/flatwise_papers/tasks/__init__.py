"""The papers' models and data as tasks: the tables themselves are studies."""
