"""Environments: batched torch simulators for training, gymnasium ids for everybody else.

`gymnasium.make("flowrl/ERA-v4")`, `…-v4-tight`, `…-v4-free`; `gymnasium.make("flowrl/City", city="city.json")` for a
user's own; the same ids in `gymnasium.make_vec`. So have the games with a hidden incident, `flowrl/ERA-Partial`, the
lines of resources, `flowrl/Line-20x10`, and Pistonball, `flowrl/Pistonball-v1`.
"""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium
import torch

from .city import City, CityError
from .classic import BatchedAcrobot, BatchedCartPole
from .era import BatchedERA
from .line import NAMES as _LINES
from .line import BatchedLine, Line, is_line
from .partial import GAMES, BatchedPartial, register

CLASSIC = {"CartPole-v1": BatchedCartPole, "Acrobot-v1": BatchedAcrobot}
_CITIES = City.names()
_PISTONBALL = [f"Pistonball-{version}" for version in ("v1", "v2", "v3", "v1-cstr", "v2-cstr")]
# v1..v5 are sizes, not releases: gymnasium would call all but the largest "out of date"
warnings.filterwarnings("ignore", message=r".*The environment flowrl/(ERA|Pistonball)-v\d is out of date")


def names() -> list[str]:
    """Every environment that can be named."""
    return [*CLASSIC, *_PISTONBALL, *_CITIES, *GAMES, *_LINES]


def _made_by(name: str | Path) -> Callable:
    """What makes a batched environment of this name: (n_envs, device, generator) → the environment. ValueError."""
    if name in CLASSIC:
        return CLASSIC[name]
    if name in GAMES:
        return functools.partial(BatchedPartial, name)
    if is_line(name):
        return functools.partial(BatchedLine, Line.load(name))
    if name in _PISTONBALL:
        from .pistonball import BatchedPistonball  # here: PettingZoo takes a second to load

        return functools.partial(BatchedPistonball, name)
    if not isinstance(name, City) and str(name) not in _CITIES and Path(name).suffix != ".json":
        raise ValueError(
            f"unknown environment {str(name)!r}: choose one of {', '.join(names())}, or a city's .json file"
        )
    return functools.partial(BatchedERA, City.load(name))


def make_batched(
    name: str | Path, n_envs: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
):
    """The batched simulator of an environment by name, or of the city in a JSON file; ValueError names the choices."""
    return _made_by(name)(n_envs, device, generator)


def constrained(name: str | Path) -> bool:
    """Whether an environment refuses any action; False for names that are not known here."""
    if name in GAMES:
        return not GAMES[name].valid.all()
    if is_line(name):
        return True
    if name in _PISTONBALL:
        return name.endswith("-cstr")
    try:
        return City.load(name).constrained
    except CityError:
        return False


def digest(name: str | Path) -> str:
    """SHA-256 hex digest of what defines an environment, the same for the same city in whatever file. ValueError."""
    if name in GAMES:
        return GAMES[name].digest
    if name in _PISTONBALL:
        from . import pistonball

        return pistonball.digest(name)
    made_by = _made_by(name)
    return made_by.args[0].digest if isinstance(made_by, functools.partial) else made_by(1).digest


register()
for _name in _LINES:
    gymnasium.register(f"flowrl/{_name}", entry_point="flowrl.envs.line:LineEnv", kwargs={"name": _name})
for _name in _PISTONBALL:
    gymnasium.register(f"flowrl/{_name}", entry_point="flowrl.envs.pistonball:PistonballEnv", kwargs={"name": _name})
for _name in [*_CITIES, "City"]:
    gymnasium.register(
        f"flowrl/{_name}",
        entry_point="flowrl.envs.era:ERAEnv",
        vector_entry_point="flowrl.envs.era:ERAVectorEnv",
        kwargs={} if _name == "City" else {"city": _name},
        order_enforce=True,
    )
