"""Colours that colour-blind people can tell apart, too. The number on a bar says which task it is; they only help."""

from __future__ import annotations

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "")
"""Empty: black on a light ground, white on a dark one."""

INK = ("#000000", "#000000", "#000000", "#000000", "#FFFFFF", "#000000", "#000000", "")
"""What the number on each colour is written in."""
