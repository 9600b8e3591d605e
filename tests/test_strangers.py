"""Five environments as their owners would write them: each trains in a line, saves, loads, acts validly, and earns more
than random valid actions. Each checks what it is given itself; what tells `fit` is the owner's own."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

import flowrl


class OneStep(gymnasium.Env):
    """Shows something, is given an action, pays, and is over."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = self.draw()
        return self.seen, self.info()

    def info(self):
        return {}

    def step(self, action):
        assert self.action_space.contains(action) and self.allowed(action)
        return self.seen, self.pay(action), True, False, self.info()


class Sorting(OneStep):
    """A camera shows the colour of a part: two grippers, never the same, of which the first must be that colour's."""

    observation_space = Dict(camera=Box(0, 255, (36, 36, 3), np.uint8), light=Box(0, 1, (1,)))
    action_space = MultiDiscrete([3, 3])

    def draw(self):
        self.colour, light = self.np_random.integers(3), self.np_random.uniform(0.5, 1, 1)
        camera = self.np_random.integers(0, 60, (36, 36, 3), dtype=np.uint8)
        camera[9:27, 9:27, self.colour] += np.uint8(180 * light[0])
        return {"camera": camera, "light": light.astype(np.float32)}

    def allowed(self, action):
        return action[0] != action[1]

    def pay(self, action):
        return float(action[0] == self.colour)


class Backpack(OneStep):
    """Twelve things of known weights and new values every time; what is packed may weigh 10 at most."""

    observation_space, action_space = Box(0, 1, (12,)), MultiBinary(12)
    weights = np.array([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6])

    def draw(self):
        return self.np_random.random(12, dtype=np.float32)

    def allowed(self, action):
        return action @ self.weights <= 10

    def is_valid(self, action):  # found by its name
        return bool(self.allowed(action))

    def pay(self, action):
        return float(action @ self.seen)


class Kitchen(OneStep):
    """Eight dishes, better and better; a mask in info says for which of them there is all in the pantry."""

    observation_space, action_space = Discrete(2), Discrete(8)

    def draw(self):
        self.mask = self.np_random.random(8) < 0.5
        self.mask[self.np_random.integers(8)] = True
        return int(self.np_random.integers(2))

    def info(self):
        return {"action_mask": self.mask}

    def allowed(self, action):
        return self.mask[action]

    def pay(self, action):
        return float(action)


class Switchboard(OneStep):
    """Twenty lines of twelve sockets, neighbours never in the same: 12²⁰ actions. Even or odd ones are wanted."""

    observation_space, action_space = MultiBinary(1), MultiDiscrete([12] * 20)

    def draw(self):
        return self.np_random.integers(2, size=1, dtype=np.int8)

    def allowed(self, action):
        return (np.diff(action) != 0).all()

    def pay(self, action):
        return float((action % 2 == self.seen[0]).mean())


class Cents(gymnasium.Env):
    """Two valves of four settings, together 4 at most, ten times; tenths of a cent for what flows where it is dry."""

    observation_space, action_space = Box(0, 1, (2,)), MultiDiscrete([4, 4])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.look(), {}

    def look(self):
        self.dry = self.np_random.random(2, dtype=np.float32)
        return self.dry

    def allowed(self, action):
        return action.sum() <= 4

    def step(self, action):
        assert self.action_space.contains(action) and self.allowed(action)
        self.time += 1
        reward = 1e-3 * float(action @ self.dry)
        return self.look(), reward, self.time == 10, False, {}


# the environment, its oracle where it is not found, settings, and how much more than random valid actions it must earn
CASES = [
    (Sorting, flowrl.per_action(lambda seen, action: action[0] != action[1]), {}, 2.0),
    (Backpack, None, {"valid_bonus": 0.1}, 1.3),
    (Kitchen, None, {}, 1.2),
    (Switchboard, lambda seen, actions: (actions.diff(dim=-1) != 0).all(-1), {}, 1.5),
    (Cents, flowrl.per_action(lambda dry, action: action.sum() <= 4), {}, 1.4),
]


def earned(make, act, episodes=200):
    """Mean return and its standard error of act(environment, observation, info)."""
    env, returns = make(), []
    for episode in range(episodes):
        (observation, info), ended, total = env.reset(seed=episode), False, 0.0
        while not ended:
            observation, reward, terminated, truncated, info = env.step(act(env, observation, info))
            ended, total = terminated or truncated, total + reward
        returns.append(total)
    return np.mean(returns), np.std(returns) / episodes**0.5


def at_random(env, observation, info):
    """Uniformly a valid action."""
    while not env.allowed(action := env.action_space.sample()):
        pass
    return action


@pytest.mark.parametrize(("make", "oracle", "settings", "times"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_strangers_problem(make, oracle, settings, times, tmp_path):
    trained = flowrl.fit(make, oracle, steps=5_120, progress=False, **settings)
    trained.save(tmp_path / "mine.pt")
    loaded = flowrl.load(tmp_path / "mine.pt", make, oracle)
    make.action_space.seed(0)
    mean, error = earned(make, lambda env, seen, info: loaded.act(seen, info=info, env=env))
    by_chance, its_error = earned(make, at_random)
    assert trained.env.violations == 0
    assert mean - 3 * error > times * (by_chance + 3 * its_error)
