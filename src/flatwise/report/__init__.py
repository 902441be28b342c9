"""A comparison in, a table for the terminal and one self-contained page out; nothing is computed here."""
