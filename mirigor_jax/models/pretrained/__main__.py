"""Convert a public checkpoint to safetensors: python -m mirigor_jax.models.pretrained FROM TO."""

import argparse
import sys
import warnings

import jax

from mirigor_jax.errors import InputError, shown
from mirigor_jax.models.pretrained import convert


def main(argv: list[str] | None = None) -> int:
    """Convert one checkpoint. Returns the exit code: 0, or 2 after one line on stderr for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m mirigor_jax.models.pretrained", description="Convert a public checkpoint to safetensors."
    )
    parser.add_argument("checkpoint", help="a .safetensors or .npz file, one of torch's, or the index of a sharded one")
    parser.add_argument("converted", help="the .safetensors file to write")
    parser.add_argument("--layout", help="the encoder's layout, where its keys don't tell it")
    parser.add_argument("--place", help="where the encoder is in the checkpoint, if there are several")
    arguments = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of further encoders: they are printed below
            pretrained = convert(
                arguments.checkpoint, arguments.converted, layout=arguments.layout, place=arguments.place
            )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    parameters = sum(leaf.size for leaf in jax.tree.leaves(pretrained.variables["params"]))
    print(
        f"{arguments.converted}: {pretrained.layout} layout, {parameters:,} parameters in {len(pretrained.used)} keys"
    )
    if pretrained.place:
        print(f"taken from '{shown(pretrained.place)}'")
    for other in pretrained.others:
        print(f"another encoder is in '{shown(other)}'; --place takes it")
    print("\n  ".join([f"{len(pretrained.ignored)} keys ignored", *pretrained.ignored]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
