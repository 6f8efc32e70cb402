"""The studies: grids of runs, each with its table and its pictures. All modules are imported; each enters its study."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
