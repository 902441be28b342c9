"""The base class of flatwise's errors."""


class FlatwiseError(Exception):
    """An error that the user can correct: wrong input, missing data, a folder that cannot be used.

    The message is one line that says what was wrong, what was given and what to do. The command line prints it.
    """
