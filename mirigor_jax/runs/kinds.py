"""The kinds of runs, by `config.kind`, and what runs each of them."""

from collections.abc import Callable

from mirigor_jax.runs import arrays, images, re_estimate

KINDS: dict[str, Callable[..., None]] = {
    "images": images.run,
    "restore": re_estimate.run,
    "arrays": arrays.run,
}
