"""How often the host waits for the device in rollout and update: counted on the CPU, where every wait is a call.

What makes a GPU's host wait is a value that Python asks for: bool, int, float, item, tolist, cpu, numpy; a shape that
depends on values: nonzero, indexing by booleans, unique, masked_select; and comparisons that answer in Python. All of
them pass a `TorchFunctionMode`, on any device. Where there is a GPU, torch's own sync debug mode counts too.
"""

import warnings
from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode, resolve_name

from flowrl import envs
from flowrl.a2c import Trainer, seeded
from flowrl.study.config import make_config

ASKS = {"__bool__", "__int__", "__float__", "__index__", "item", "tolist", "cpu", "numpy", "nonzero", "argwhere",
        "masked_select", "unique", "unique_consecutive", "equal", "allclose", "is_nonzero", "bincount"}  # fmt: skip
INDEXES = {"__getitem__", "__setitem__", "index_put", "index_put_"}
SMALL = {"hidden": 16, "policy_hidden": 8, "n_envs": 8}
# An update's waits where no state is short of valid draws: was one (MASK: had one none at all)? Is the gradient finite?
# Algorithm 1: which actions are shared, and is the gradient of the ELBO finite? Its posterior's first fit is apart.
# Action values, too: is the rollout finite, and Q's gradient; is a transition live, and which of those drawn, of how
# many; Adam's own count of steps.
WAITS = [("iar-a2c", {}, 2), ("iar-a2c-gumbel", {}, 2), ("mask", {}, 2), ("factored-iar", {}, 2), ("ar-iar", {}, 2),
         ("iar-a2c-q", {}, 8), ("iar-a2c-q", {"restarts": 2}, 8),
         ("iar-a2c-paper", {"elbo_batch": 8, "posterior_fit_steps": 0}, 4)]  # fmt: skip


class Waits(TorchFunctionMode):
    """Counts, by name, the calls for which the host of a GPU would wait."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = (resolve_name(function) or getattr(function, "__name__", "")).rpartition(".")[2]
        if name in ASKS or name == "to" and "cpu" in map(str, args[1:]) or name in INDEXES and _by_values(args[1]):
            self.counted[name] += 1
        return function(*args, **(kwargs or {}))


def _by_values(index) -> bool:
    """Whether what an index picks depends on values: booleans, or a single number that is a tensor."""
    parts = index if isinstance(index, tuple | list) else (index,)
    return any(isinstance(part, torch.Tensor) and (part.dtype == torch.bool or part.dim() == 0) for part in parts)


def trainer(method, env, device="cpu", **changes):
    config = make_config(env, method, SMALL | changes)
    return Trainer(config, envs.make_batched(env, config.n_envs, device, seeded(0, "env", device)))


def waits(one, updates=1) -> Counter:
    one.step()  # what is set up once is no part of it
    with Waits() as mode:
        for _ in range(updates):
            one.step()
    return mode.counted


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda x: bool(x.any()), 1),
        (lambda x: x.any() and x.all(), 1),
        (lambda x: int(x.sum()) + float(x.sum()) + x.sum().item(), 3),
        (lambda x: (x.tolist(), x.cpu(), x.numpy(), x.to("cpu")), 4),
        (lambda x: (x[x > 0], x.nonzero(), x[x[0].long()]), 3),
        (lambda x: x.index_put_((x > 0,), torch.ones(())), 1),
        (lambda x: torch.equal(x, x) and torch.unique(x) is not None, 2),
        (lambda x: (x[x.long()], x[0], x[:, None], torch.where(x > 0, x, 0), x.masked_fill(x > 0, 1), len(x)), 0),
    ],
)
def test_the_count_counts(ask, expected):
    with Waits() as mode:
        ask(torch.zeros(3))
    assert sum(mode.counted.values()) == expected


@pytest.mark.parametrize(("method", "settings", "expected"), WAITS)
def test_waits_of_an_update(method, settings, expected):
    counted = waits(trainer(method, "ERA-v1-free", **settings), updates=5)
    assert sum(counted.values()) == 5 * expected, counted


@pytest.mark.parametrize("n_steps", [1, 4])
def test_waits_grow_with_the_steps_of_a_rollout(n_steps):
    counted = waits(trainer("iar-a2c", "ERA-v1-free", n_steps=n_steps))
    assert sum(counted.values()) == n_steps + 1, counted


@pytest.mark.parametrize("method", ["iar-a2c", "iar-a2c-gumbel", "factored-iar"])
def test_a_bounded_number_of_waits_where_states_are_short_of_valid_draws(method):
    """Four, and one a doubling: which states are short, which still are, whether all were served; then A is listed."""
    one = trainer(method, "ERA-v3-tight", n_draws=4, n_correction=4, max_draws=64)
    doublings = 4  # 4 + 8 + 16 + 32 + 4 = 64
    for _ in range(5):
        before = one.counts["enumerations"]
        counted = waits(one)
        listed = one.counts["enumerations"] > before
        assert 2 < sum(counted.values()) <= 4 + doublings + 3 * listed, counted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("method", "settings", "expected"), WAITS)
def test_on_a_gpu_torch_counts_no_more(method, settings, expected):
    one = trainer(method, "ERA-v1-free", "cuda", **settings)
    one.step()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(5):
                one.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    counted = sum("called a synchronizing" in str(warning.message) for warning in said)  # torch says more of the mode
    assert 0 < counted <= 5 * expected
