"""Warnings about a user's files, kept for the report."""

import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def noted(read: Callable[[], T]) -> tuple[T, tuple[str, ...]]:
    """(what `read` returns, the words of its warnings, each once). The warnings are given all the same."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = read()
    for warning in caught:
        warnings.warn(warning.message, stacklevel=3)
    return result, tuple(dict.fromkeys(str(warning.message) for warning in caught))
