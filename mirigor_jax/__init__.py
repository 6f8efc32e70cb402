"""Contrastive learning and certified mutual information in JAX.

    import mirigor_jax as mj

    print(mj.mi.estimate(x, y))  # I(X;Y) of paired rows, with an interval and a certificate

Python imports the module behind a public name at the first use of the name, so `import mirigor_jax` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

__all__ = [
    "InputError",
    "__version__",
    "cdp",
    "encode",
    "evaluate",
    "load_encoder",
    "metrics",
    "mi",
    "models",
    "objectives",
    "patches",
    "probes",
    "train",
]

if TYPE_CHECKING:  # type checkers and editors read this; Python reads _HOMES
    from mirigor_jax import metrics, mi, models, objectives, probes
    from mirigor_jax.data import cdp, patches
    from mirigor_jax.encoding import encode
    from mirigor_jax.errors import InputError
    from mirigor_jax.metrics import evaluate
    from mirigor_jax.models.pretrained import load as load_encoder
    from mirigor_jax.training import train
else:
    # Public name → MODULE or MODULE:NAME. A test compares it with __all__ and the imports above.
    _HOMES = {
        "InputError": "mirigor_jax.errors:InputError",
        "cdp": "mirigor_jax.data.cdp",
        "encode": "mirigor_jax.encoding:encode",
        "evaluate": "mirigor_jax.metrics:evaluate",
        "load_encoder": "mirigor_jax.models.pretrained:load",
        "metrics": "mirigor_jax.metrics",
        "mi": "mirigor_jax.mi",
        "models": "mirigor_jax.models",
        "objectives": "mirigor_jax.objectives",
        "patches": "mirigor_jax.data.patches",
        "probes": "mirigor_jax.probes",
        "train": "mirigor_jax.training:train",
    }

    def __getattr__(name: str) -> object:
        # PEP 562. Type checkers must not see this function: they would accept any attribute of the package.
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _HOMES[name].partition(":")
        value = import_module(module)
        globals()[name] = getattr(value, attribute) if attribute else value
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
