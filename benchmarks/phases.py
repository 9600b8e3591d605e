"""Where a training step's time goes: python -m benchmarks.phases (half a minute).

Of each case, shares of the CPU time of `Trainer.step`: the simulators, deciding (draws, the oracle, which action), the
update, and what lies between. Beside them CPU ms and how many torch operators each calls in a training step. One torch
thread, no worker processes: data/benchmarks/phases.csv; machine.json says where.
"""

import argparse
import json
import time

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flowrl import envs
from flowrl.a2c import Trainer, seeded
from flowrl.study.config import make_config
from flowrl.study.records import provenance
from flowrl.study.runs import one_thread

from .cost import OUT

# A2C as `compare_sb3` runs it. Both libraries have tanh networks of two layers, actor and critic apart, RMSprop with
# α 0.99 and ε 1e-5, advantages from n-step returns (λ = 1) that are not normalised.
SHARED = dict(
    n_steps=5, gamma=0.99, actor_lr=7e-4, critic_lr=7e-4, hidden=64, entropy=0.0, clip=0.5, joint_clip=True,
    value_coef=0.5, value_scale=1.0,
)  # fmt: skip
CASES = [("CartPole-v1", "a2c", SHARED | {"n_envs": n}) for n in (8, 64)]
CASES += [("Acrobot-v1", "a2c", SHARED | {"n_envs": n}) for n in (8, 64)]
CASES += [("Pistonball-v1", "iar-a2c", {})]
WARM_UP = 20  # training steps
SECONDS = 4  # of CPU, at least, of a case


class Operators(TorchDispatchMode):
    """Counts torch operators while it is entered, those of the backward pass too."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


class Phases:
    """What a trainer's phases take, by a clock that is read before and after each."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.clock, self.spent = trainer, time.process_time, {}
        for owner, name, phase in (
            (trainer.env, "step", "simulators"), (trainer, "decide", "deciding"), (trainer, "update", "update"),
        ):  # fmt: skip
            setattr(owner, name, self._timed(getattr(owner, name), phase))

    def _timed(self, call, phase: str):
        def timed(*args):
            start = self.clock()
            result = call(*args)
            self.spent[phase] += self.clock() - start
            return result

        return timed

    def measure(self, clock, steps: int) -> pd.Series:
        """Of so many training steps, for each of them: by phase, and the rest."""
        self.clock, self.spent = clock, dict.fromkeys(("simulators", "deciding", "update"), 0)
        start = clock()
        for _ in range(steps):
            self.trainer.step()
        spent = pd.Series(self.spent)
        spent["rest"] = clock() - start - spent.sum()
        return spent / steps


def profile(env: str, method: str, settings: dict) -> pd.DataFrame:
    """The rows of a case."""
    config = make_config(env, method, settings)
    phases = Phases(Trainer(config, envs.make_batched(env, config.n_envs, "cpu", seeded(0, "env"))))
    phases.measure(time.process_time, WARM_UP)
    with Operators() as operators:
        calls = phases.measure(lambda: operators.calls, 2)
    each = phases.measure(time.process_time, 2).sum()
    seconds = phases.measure(time.process_time, 1 + round(SECONDS / each))
    about = {"environment": env, "method": method, "n_envs": config.n_envs, "phase": seconds.index}
    return pd.DataFrame(about | {
        "percent": 100 * seconds.values / seconds.sum(), "ms": 1000 * seconds.values, "operators": calls.values,
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.phases", description=__doc__.splitlines()[0])
    parser.parse_args()
    made = provenance(torch.device("cpu"))
    if made["dirty"]:
        parser.error("the code differs from its commit: commit first, a table is of a commit")
    one_thread()
    table = pd.concat([profile(*case) for case in CASES])
    print(table.to_string(index=False, float_format="%.3g"))
    table.to_csv(OUT / "phases.csv", index=False, float_format="%.4g")
    machines = json.loads((OUT / "machine.json").read_text())
    (OUT / "machine.json").write_text(json.dumps(machines | {"phases": made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
