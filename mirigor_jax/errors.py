"""The one exception that is shown to a user as a sentence instead of a traceback."""


class InputError(ValueError):
    """Something the user gave is wrong: one line with the value, what was expected, and the fix.

    `main` prints it and exits with 2; anything else that is raised is a defect of ours and keeps its traceback.
    """
