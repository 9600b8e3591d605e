"""Is nothing invalid ever executed? python -m benchmarks.audit [--steps 1000000] (half an hour of one core).

Every constrained environment under every method that claims validity, all but Wol-DDPG, and some cities where next to
nothing is valid under chains, trains for its share of the steps. Each executed action is judged once more, in the
environment's own state before the step, by a rule written anew here: loops, hops by SciPy from the list of roads,
positions from the physics; no table of the package's oracles. In the same states the rule and the oracle judge one
uniformly drawn action, too: where the rule refuses none of these it would prove nothing. One row a pair in
data/benchmarks/audit.csv, written as it ends; a row that is there, of as many steps, is not made again. Exit status 1
where something was invalid.
"""

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from flowrl import envs
from flowrl.a2c import Trainer, seeded
from flowrl.policies import MAX_LOGITS, NEEDS_POSTERIOR
from flowrl.rejection import ask
from flowrl.study.config import A2C_METHODS, METHODS, NO_CONSTRAINTS, TrainConfig, make_config
from flowrl.study.records import provenance, replacing
from flowrl.study.runs import one_thread

from .cost import OUT

PATH = OUT / "audit.csv"
VALID_METHODS = [name for name in A2C_METHODS if name not in NO_CONSTRAINTS]
CHAINS = "iar-a2c-gumbel, chains"
CHAINED = ("ERA-v3-tight", "ERA-v5-tight", "data/cities/ERA-R5.json", "data/cities/ERA-R9.json")
Rule = Callable[[Sequence[int]], bool]  # of an action, in one state


def configured(name: str, method: str, steps: int) -> TrainConfig:
    """The method as it is, or the Gumbel flow with chains."""
    changes = {"chains": 8, "max_draws": 256, "valid_bonus": 1} if method == CHAINS else {}
    return make_config(name, method.partition(",")[0], changes | {"steps": steps})


def shares(planned: list[tuple[str, str]], steps: int) -> dict[tuple[str, str], int]:
    """Steps of each pair, so many in all: of the methods with a posterior, ten times as slow, a quarter of the rest."""
    weight = {pair: 1 if configured("ERA-v1", pair[1], 1).estimator in NEEDS_POSTERIOR else 4 for pair in planned}
    return {pair: -(-steps * weight[pair] // sum(weight.values())) for pair in planned}


def pairs() -> list[tuple[str, str]]:
    """Environments and methods, without MASK where |A| is more than it can list."""
    constrained = [name for name in envs.names() if envs.constrained(name)]
    listable = {name: math.prod(envs.make_batched(name, 1).action_sizes) <= MAX_LOGITS for name in constrained}
    return [
        (name, method)
        for name in constrained
        for method in VALID_METHODS
        if listable[name] or METHODS[method].get("policy") != "masked"
    ] + [(name, CHAINS) for name in CHAINED]


# ------------------------------------------------------------------- the rules anew: env → one a copy, now


def city_rules(env: envs.era.BatchedERA) -> Callable[[], list[Rule]]:
    """Each resource to a district within `max_hops` of where it is, and pairs in `proximity` near one another."""
    city = env.city
    first, second, _ = zip(*city.edges, strict=True)
    roads = coo_array((np.ones(len(first)), (first, second)), shape=(city.districts,) * 2)
    hops = shortest_path(roads, directed=False, unweighted=True).tolist()

    def rule(here: list[int], there: Sequence[int]) -> bool:
        exist = all(0 <= district < city.districts for district in there)
        near = exist and (
            city.max_hops is None or all(hops[i][j] <= city.max_hops for i, j in zip(here, there, strict=True))
        )
        return near and all(hops[there[i]][there[j]] <= limit for i, j, limit in city.proximity)

    return lambda: [lambda there, here=here: rule(here, there) for here in env.allocation.tolist()]


def line_rules(env: envs.line.BatchedLine) -> Callable[[], list[Rule]]:
    """The k-th level of a resource, in its context's order, not beside the (k + M)-th of the next, round about."""
    line = env.line
    order = line._order.tolist()
    forbidden = {
        (c, d, order[c][d][k], order[c][d + 1][(k + line.modes) % line.levels])
        for c in range(line.contexts)
        for d in range(line.resources - 1)
        for k in range(line.levels)
    }

    def rule(c: int, levels: Sequence[int]) -> bool:
        beside = enumerate(zip(levels, levels[1:], strict=False))
        return all(0 <= i < line.levels for i in levels) and not any((c, d, i, j) in forbidden for d, (i, j) in beside)

    return lambda: [lambda levels, c=c: rule(c, levels) for c in env._context.tolist()]


def game_rules(env: envs.partial.BatchedPartial) -> Callable[[], list[Rule]]:
    """Both resources on the ring, at most `proximity` steps apart, either way round."""
    K, most = env.game.districts, env.game.proximity

    def rule(action: Sequence[int]) -> bool:
        i, j = action
        return 0 <= i < K and 0 <= j < K and min((i - j) % K, (j - i) % K) <= most

    return lambda: [rule] * env.n_envs


def piston_rules(env) -> Callable[[], list[Rule]]:
    """Down, stay or up; a piston all of whose segments lie to the left of the ball not up."""

    def rule(raw, moves: Sequence[int]) -> bool:
        leftmost = raw.ball.position.x - raw.ball_radius
        for piston, move in zip(raw.pistonList, moves, strict=True):
            ends = [piston.local_to_world(end).x + one.radius for one in piston.shapes for end in (one.a, one.b)]
            if move not in (0, 1, 2) or move == 2 and max(ends) <= leftmost:
                return False
        return True

    return lambda: [lambda moves, raw=one._raw: rule(raw, moves) for one in env._here.envs]


def rules_of(env) -> Callable[[], list[Rule]]:
    """The environment's rules in the states that it is in when they are asked for."""
    kinds = {"BatchedERA": city_rules, "BatchedLine": line_rules, "BatchedPartial": game_rules,
             "BatchedPistonball": piston_rules}  # fmt: skip
    return kinds[type(env).__name__](env)


# ------------------------------------------------------------------------------------------------ the audit


class Audit:
    """Stands before an environment's `step` and judges what is executed."""

    def __init__(self, env):
        self.env, self.rules, self.step = env, rules_of(env), env.step
        self.generator = seeded(0, "uniform actions")
        self.steps = self.violations = self.refused = self.disagreements = 0
        env.step = self.audited

    def audited(self, actions: torch.Tensor):
        rules = self.rules()
        self.steps += len(actions)
        self.violations += sum(not rule(action) for rule, action in zip(rules, actions.tolist(), strict=True))
        self._compare(rules)
        return self.step(actions)

    def _compare(self, rules: list[Rule]) -> None:
        """Rule and oracle on a uniformly drawn action in each state."""
        sizes = torch.tensor(self.env.action_sizes)
        drawn = (torch.rand(len(rules), len(sizes), generator=self.generator) * sizes).long()
        said = ask(self.env.valid, self.observation(), drawn[:, None])[:, 0].tolist()
        for rule, action, valid in zip(rules, drawn.tolist(), said, strict=True):
            allowed = rule(action)
            self.refused += not allowed
            self.disagreements += allowed != valid

    def observation(self) -> torch.Tensor:
        return self.trainer.observation

    def train(self, trainer: Trainer, steps: int) -> None:
        self.trainer = trainer
        while self.steps < steps:
            trainer.step()


def audit(name: str, method: str, steps: int) -> dict:
    """One row of the table."""
    config = configured(name, method, steps)
    env = envs.make_batched(name, config.n_envs, "cpu", seeded(0, "env"))
    began, one = time.process_time(), Audit(env)
    trainer = Trainer(config, env)
    one.train(trainer, steps)
    made = provenance(torch.device("cpu"))
    return {
        "environment": name, "method": method, "steps": one.steps, "violations": one.violations,
        "counted_by_environment": int(env.violations), "uniform_refused": round(one.refused / one.steps, 4),
        "disagreements": one.disagreements, "redrawn": trainer.counts["resamples"],
        "enumerated": trainer.counts["enumerations"], "fallback": trainer.counts["fallbacks"],
        "chains": trainer.counts["chains"],
        "cpu_s": round(time.process_time() - began, 1), "commit": made["commit"], "dirty": made["dirty"],
        "torch": made["versions"]["torch"], "cpu": made["machine"]["cpu"],
    }  # fmt: skip


def wrong(row: dict) -> bool:
    """Whether a row tells of anything invalid, or of a rule that refuses nothing or says otherwise than the oracle."""
    counted = (row["violations"], row["counted_by_environment"], row["disagreements"])
    return any(map(int, counted)) or float(row["uniform_refused"]) == 0


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.audit", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000, help="audited steps in all (default 1000000)")
    parser.add_argument("--only", nargs="+", metavar="ENV", help="some environments, as many steps each")
    args = parser.parse_args()
    one_thread()
    planned = pairs()
    wanted = shares(planned, args.steps)
    rows = list(csv.DictReader(PATH.open())) if PATH.exists() else []
    done = {(row["environment"], row["method"]): int(row["steps"]) for row in rows}
    for name, method in planned:
        steps = wanted[name, method]
        if done.get((name, method), 0) >= steps or args.only and name not in args.only:
            continue
        row = audit(name, method, steps)
        print(*row.values(), flush=True)
        rows = [old for old in rows if (old["environment"], old["method"]) != (name, method)] + [row]
        rows.sort(key=lambda row: planned.index((row["environment"], row["method"])))
        with replacing(PATH) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, row.keys(), restval=0, lineterminator="\n")  # of before there were chains: 0
            writer.writeheader()
            writer.writerows(rows)
    total, found = sum(int(row["steps"]) for row in rows), [row for row in rows if wrong(row)]
    violations = sum(int(row["violations"]) for row in rows)
    print(f"{len(rows)} of {len(planned)} pairs, {total:,} audited steps, {violations} violations")
    for row in found:
        print(f"wrong: {row['environment']} {row['method']}: {row}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
