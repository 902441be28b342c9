"""The built-in task, and what training functions of other packages can use of it."""
