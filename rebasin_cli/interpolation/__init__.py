"""The line between checkpoints, evaluated in one pass; recalibration, REPAIR, and faces for Python users."""

from rebasin_cli.interpolation.faces import Interpolation, LerpSimple
from rebasin_cli.interpolation.path import Line, Point, grid
from rebasin_cli.interpolation.sweep import Barrier, Best, Sweep, SweepPoint

__all__ = ["Barrier", "Best", "Interpolation", "LerpSimple", "Line", "Point", "Sweep", "SweepPoint", "grid"]
