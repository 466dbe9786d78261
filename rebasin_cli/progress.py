"""How a verb says where it is: the library calls, whoever called the verb listens (or does not)."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener. Every method returns at once and raises nothing."""

    def phase(self, name: str) -> None:
        """A new phase of the work begins ("reading", "matching", …)."""

    def step(self, done: float, total: float | None, detail: str = "") -> None:
        """So much of the present phase is done; `total` is None where nobody can know it."""

    def note(self, text: str) -> None:
        """A sentence the user should read, though nothing is wrong."""


class Silent:
    """The listener that does not listen."""

    def phase(self, name: str) -> None:
        return None

    def step(self, done: float, total: float | None, detail: str = "") -> None:
        return None

    def note(self, text: str) -> None:
        return None
