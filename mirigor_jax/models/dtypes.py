"""The dtypes that encoders compute in."""

import jax

from mirigor_jax.errors import InputError

DTYPES = ("auto", "float32", "bfloat16", "float64")


def compute_dtype(dtype: str) -> str:
    """The dtype itself, for `auto` the one of this platform. Raises InputError for an unknown one."""
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype '{dtype}'; choose one of {', '.join(DTYPES)}")
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return dtype
