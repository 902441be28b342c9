"""What tasks are made of, and the built-in one."""
