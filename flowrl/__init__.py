"""flowrl: flow policies for large categorical actions under an oracle's constraints (IAR-A2C, NeurIPS 2023).

The paper, in reading order: `flows`, `policies`, `estimators`, `rejection`, `a2c`, with `encoders` and `optimisers`.
Beside it: `wolpertinger`, a rival; `gumbel`, a flow whose argmax has exact conditionals; `chains`, where valid actions
are rare; `fit`, one's own problem in one call, and `fitted`, what it gives back. `envs`: environments and oracles;
`truth`: exact optima and gradients; `study`: from experiments to figures.
"""

from . import envs
from .envs.validity import per_action
from .fit import fit, load

__all__ = ["envs", "fit", "load", "per_action"]
