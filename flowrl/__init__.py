"""flowrl: flow policies for large categorical actions under an oracle's constraints (IAR-A2C, NeurIPS 2023)."""

from . import envs
from .envs.gym import per_action
from .fit import fit

__all__ = ["envs", "fit", "per_action"]
