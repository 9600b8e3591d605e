"""flowrl: flow policies for large categorical actions under an oracle's constraints (IAR-A2C, NeurIPS 2023)."""

from . import envs

__all__ = ["envs"]
