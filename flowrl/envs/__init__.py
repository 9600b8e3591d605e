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

from .batched import Batched
from .city import City, CityError
from .classic import BatchedAcrobot, BatchedCartPole
from .era import BatchedERA
from .line import NAMES as _LINES
from .line import BatchedLine, Line, is_line
from .partial import GAMES, BatchedPartial, register

SIMULATORS: dict[str, tuple[type, bool]] = {  # by name: the class, and whether it ever refuses an action
    "CartPole-v1": (BatchedCartPole, False),
    "Acrobot-v1": (BatchedAcrobot, False),
}
_CITIES = City.names()
_PISTONBALL = [f"Pistonball-{version}" for version in ("v1", "v2", "v3", "v1-cstr", "v2-cstr")]
# v1..v5 are sizes, not releases: gymnasium would call all but the largest "out of date"
warnings.filterwarnings("ignore", message=r".*The environment flowrl/(ERA|Pistonball)-v\d is out of date")


def names() -> list[str]:
    """Every environment that can be named.

    >>> {"ERA-v4", "Pistonball-v1", "CartPole-v1", "ERA-Partial"} <= set(names())
    True
    """
    return [*SIMULATORS, *_PISTONBALL, *_CITIES, *GAMES, *_LINES]


def _made_by(name: str | Path | City) -> Callable[..., Batched]:
    """What makes a batched environment of this name: (n_envs, device, generator) → the environment. ValueError."""
    known = name if isinstance(name, str) else ""
    if known in SIMULATORS:
        return SIMULATORS[known][0]
    if known in GAMES:
        return functools.partial(BatchedPartial, known)
    if is_line(name):
        return functools.partial(BatchedLine, Line.load(name))
    if known in _PISTONBALL:
        from .pistonball import BatchedPistonball  # here: PettingZoo takes a second to load

        return functools.partial(BatchedPistonball, known)
    return functools.partial(BatchedERA, _city(name))


def _city(name: str | Path | City) -> City:
    if not isinstance(name, City) and str(name) not in _CITIES and Path(name).suffix != ".json":
        raise ValueError(
            f"unknown environment {str(name)!r}: choose one of {', '.join(names())}, or a city's .json file"
        )
    return City.load(name)


def make_batched(
    name: str | Path, n_envs: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Batched:
    """The batched simulator of an environment by name, or of the city in a JSON file; ValueError names the choices.

    generator: what draws its episodes, on its device; None: one seeded at random.

    >>> env = make_batched("ERA-v1", n_envs=2)
    >>> observation = env.reset()
    >>> observation.shape, env.action_sizes  # 6 districts: covered, emergency, 3 resources
    (torch.Size([2, 6, 5]), (6, 6, 6))
    >>> env.valid(observation, torch.zeros(2, 7, 3, dtype=torch.int64)).shape  # 7 actions in each state
    torch.Size([2, 7])
    """
    return _made_by(name)(n_envs, device, generator)


def constrained(name: str | Path) -> bool:
    """Whether an environment refuses any action; False for names that are not known here.

    >>> constrained("ERA-v4"), constrained("ERA-v4-free")
    (True, False)
    """
    known = name if isinstance(name, str) else ""
    if known in SIMULATORS:
        return SIMULATORS[known][1]
    if known in GAMES:
        return not GAMES[known].valid.all()
    if is_line(name):
        return True
    if known in _PISTONBALL:
        return known.endswith("-cstr")
    try:
        return City.load(name).constrained
    except CityError:
        return False


def digest(name: str | Path) -> str:
    """SHA-256 hex digest of what defines an environment, the same for the same city in whatever file. ValueError."""
    known = name if isinstance(name, str) else ""
    if known in GAMES:
        return GAMES[known].digest
    if is_line(name):
        return Line.load(name).digest
    if known in _PISTONBALL:
        from . import pistonball

        return pistonball.digest(known)
    return SIMULATORS[known][0](1).digest if known in SIMULATORS else _city(name).digest


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
