"""Environments: batched torch simulators for training, gymnasium ids for everybody else.

`gymnasium.make("flowrl/ERA-v4")`, `…-v4-tight`, `…-v4-free`; `gymnasium.make("flowrl/City", city="city.json")` for a
user's own; the same ids in `gymnasium.make_vec`.
"""

import warnings
from pathlib import Path

import gymnasium
import torch

from flowrl.envs.city import City, CityError
from flowrl.envs.era import BatchedERA

_CITIES = City.names()
# v1..v5 are sizes, not releases: gymnasium would call all but the largest "out of date"
warnings.filterwarnings("ignore", message=r".*The environment flowrl/ERA-v\d is out of date")


def names() -> list[str]:
    """Every environment that can be named."""
    return list(_CITIES)


def constrained(name: str | Path) -> bool:
    """Whether an environment refuses any action; False for names that are not known here."""
    try:
        city = City.load(name)
    except CityError:
        return False
    return not (city.may_move.all() and not city.proximity)


def digest(name: str | Path) -> str:
    """SHA-256 hex digest of what defines an environment, the same for the same city in whatever file."""
    return City.load(name).digest


def make_batched(
    name_or_path: str | Path, n_envs: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> BatchedERA:
    """The batched simulator of an environment by name, or of the city in a JSON file; ValueError names the choices."""
    return BatchedERA(City.load(name_or_path), n_envs, device, generator)


for _name in [*_CITIES, "City"]:
    gymnasium.register(
        f"flowrl/{_name}",
        entry_point="flowrl.envs.era:ERAEnv",
        vector_entry_point="flowrl.envs.era:ERAVectorEnv",
        kwargs={} if _name == "City" else {"city": _name},
        order_enforce=True,
    )
