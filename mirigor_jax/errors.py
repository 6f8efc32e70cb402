"""`InputError`, the one exception that a user sees as a sentence and not as a traceback."""

from collections.abc import Sequence

MOST = 4000  # largest number of characters of a message


class InputError(ValueError):
    """An input of the user is wrong. The message is one line with the value, the expected value and the fix.

    `main` prints it and exits with 2. Any other exception is a defect of this package and keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(shown(message, MOST))


def listed(names: Sequence[str], most: int = 30) -> str:
    """The first names, and their number if there are more than `most`, for a message."""
    more = f", … ({len(names):,} in all)" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more


def shown(text: str, most: int = 200) -> str:
    r"""The text for one line of a terminal: cut to `most` characters, and unprintable ones escaped, such as \n or \x1b.

    text: any characters, such as a name from a user or a file.
    """
    text = text if len(text) <= most else f"{text[: most - 2]} …"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
