"""The dtypes that encoders compute in."""

import jax

from mirigor_jax.fields import of
from mirigor_jax.settings import Encoder


def compute_dtype(dtype: str) -> str:
    """The dtype; "auto" becomes float32 on CPU and bfloat16 elsewhere. Raises InputError for an unknown one."""
    of(Encoder, "dtype").check("dtype", dtype)
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return dtype
