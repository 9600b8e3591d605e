"""flowrl: flow policies for large categorical actions under an oracle's constraints (IAR-A2C, NeurIPS 2023)."""

from . import envs
from .envs.validity import per_action
from .fit import fit, load

__all__ = ["envs", "fit", "load", "per_action"]
