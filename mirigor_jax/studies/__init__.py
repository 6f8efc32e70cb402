"""The studies: grids of runs, each with a table and pictures. Importing a module enters its study in STUDIES."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
