"""Fourier transforms: frequencies have an order, everything else passes."""

from __future__ import annotations

from rebasin_cli.symmetry.positions import Layout
from rebasin_cli.symmetry.registry import Op, hold_dims, resized, rule

FREQUENCY = "a Fourier transform runs along this axis"


@rule("aten._fft_c2c", "aten._fft_c2r", "aten._fft_r2c")
def transform(op: Op) -> Layout:
    layout = op.layout("self")
    places = op.dims("dim", len(layout.dims))
    held = hold_dims(op.relations, layout, places, FREQUENCY)
    return resized(op.relations, held, places, op.result_shape, FREQUENCY)
