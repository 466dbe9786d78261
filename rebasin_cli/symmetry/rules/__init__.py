"""How the axes of each operation's results relate to those of its arguments: one family of operations a file.

Importing this package imports every file in it, which registers its rules.
"""

from importlib import import_module
from pkgutil import iter_modules

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
