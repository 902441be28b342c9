"""The papers' models and data as tasks of flatwise."""
