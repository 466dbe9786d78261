"""The line between checkpoints: its networks, the curves and barriers of a sweep, its result file.

`interpolation.LerpSimple` and `interpolation.Interpolation` are here for users of the library `rebasin`; see `compat`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("LerpSimple", "Interpolation"):
        import rebasin_cli

        return getattr(rebasin_cli, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
