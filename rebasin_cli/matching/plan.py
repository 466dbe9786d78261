"""What an effort allows the search by weights: which starts, and how much work. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

Effort = Literal["auto", "fast", "standard", "thorough"]
EFFORTS: tuple[str, ...] = get_args(Effort)
