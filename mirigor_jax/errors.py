"""The one exception that is shown to a user as a sentence instead of a traceback."""

MOST = 4000  # characters of a message


class InputError(ValueError):
    """Something the user gave is wrong: one line with the value, what was expected, and the fix.

    `main` prints it and exits with 2; anything else that is raised is a defect of ours and keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(shown(message, MOST))


def shown(text: str, most: int = 200) -> str:
    r"""The text on one line of a terminal: what can't be printed is escaped, as \n and \x1b, and the rest is cut off.

    text: what a user or a file calls something, of any characters. most: characters.
    """
    text = text if len(text) <= most else f"{text[: most - 2]} …"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
