"""How Sphinx builds these pages: `pip install -e ".[docs]" && sphinx-build -W docs build/docs`."""

import re
from typing import Any

import mirigor_jax

project = "mirigor_jax"
author = "the authors of mirigor_jax"
version = release = mirigor_jax.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"mirigor_jax {version}"
html_show_copyright = False
exclude_patterns = ["_build"]
default_role = "code"  # docstrings write `code` as Markdown does
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test runs the notebooks; the pages show the outputs that they keep
suppress_warnings = ["mystnb.unknown_mime_type"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"

NO_ARGUMENTS = ("Source", "Raises", "Returns", "Example")  # words before a colon that name no argument
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): (.*)$")


def as_fields(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn our docstrings into reStructuredText: a line `name: meaning` becomes an item of a list.

    Its arguments are those of Sphinx's event autodoc-process-docstring. lines: the docstring, changed in place.
    """
    if any(line.startswith(":param ") for line in lines):
        lines[:] = [line.replace("|", r"\|") for line in lines]
        return  # napoleon has read its "Args:"
    result: list[str] = []
    place = "text"  # or "list", or "example"
    for line in lines:
        found = ARGUMENT.match(line)
        indented = line.startswith("    ")
        is_first = not result or not result[-1]  # of a paragraph
        if found and found[1] not in NO_ARGUMENTS:
            if place != "list" and not is_first:
                result.append("")
            place = "list"
            names = ", ".join(f"**{each}**" for each in found[1].split(", "))
            result.append(f"- {names}: {escaped(found[2])}")
        elif place == "list" and indented and not is_first:
            result.append(f"  {escaped(line.strip())}")
        elif indented and (place == "example" or is_first):
            if place != "example":
                result += ["::", ""]
            place = "example"
            result.append(line)
        else:
            if line and place != "text" and not is_first:
                result.append("")
            place = "text" if line else place
            result.append(escaped(line.strip()))
    lines[:] = result


def escaped(text: str) -> str:
    """The text with the characters that reStructuredText would read as markup escaped, outside of `code`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*|]|_(?!\w))", r"\\\1", part) for part in parts)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", as_fields)
