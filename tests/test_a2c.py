"""flowrl.a2c: the update against A2C written out, clipping, devices, repeatability, checkpoints and learning, all on a
contextual bandit whose best-paid action the oracle refuses.
"""

import io
import math
from copy import deepcopy

import pytest
import torch
from ground_truth import randomise
from torch import Tensor

from flowrl import rejection
from flowrl.a2c import MEANS, Trainer, seeded
from flowrl.envs.batched import Step
from flowrl.policies import to_flat
from flowrl.study.config import A2C_METHODS as METHODS
from flowrl.study.config import make_config

FLOW_METHODS = ("iar-a2c", "iar-a2c-paper")
CONTEXTS, SIZES = 3, (3, 3)
BEST, FORBIDDEN = torch.tensor([1, 5, 6]), torch.tensor([4, 0, 8])  # flat actions by context: reward 1; 5, but invalid


class Bandit:
    """One-hot contexts, 9 actions, every other one of them invalid; an episode ends after each step.

    Reward 1 for the best valid action, 0 for the other valid ones, 5 for an invalid one. `ending`: how episodes end.
    """

    def __init__(self, n_envs: int, seed: int = 0, ending: str = "terminated", device="cpu"):
        self.n_envs, self.device, self.ending = n_envs, torch.device(device), ending
        self.action_sizes, self.observation_shape = SIZES, (CONTEXTS + 1,)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        flat = torch.arange(9, device=self.device)
        self.reward = (flat == BEST[:, None]).float() + 5 * (flat == FORBIDDEN[:, None]).float()
        self.allowed = ((flat + torch.arange(CONTEXTS, device=self.device)[:, None]) % 2 == 0) | (self.reward == 1)
        self.allowed &= self.reward < 5
        self.violations = torch.zeros((), dtype=torch.int64, device=self.device)
        self.reset()

    def observe(self, last: float) -> Tensor:
        one_hot = torch.nn.functional.one_hot(self.context, CONTEXTS).float()
        return torch.cat((one_hot, torch.full_like(one_hot[:, :1], last)), 1)

    def reset(self) -> Tensor:
        self.context = torch.randint(
            CONTEXTS, (self.n_envs,), generator=self.generator, device=self.device, dtype=torch.int64
        )
        return self.observe(0.0)

    def step(self, action: Tensor) -> Step:
        flat = to_flat(action, SIZES)
        reward = self.reward[self.context, flat]
        self.violations += (~self.allowed[self.context, flat]).sum()
        final = self.observe(1.0)
        ends = torch.ones_like(reward, dtype=torch.bool)
        how = (ends, ~ends) if self.ending == "terminated" else (~ends, ends)
        return Step(self.reset(), reward, *how, final)

    def valid(self, observation: Tensor, actions: Tensor) -> Tensor:
        return self.allowed[observation[:, :CONTEXTS].argmax(-1)].gather(1, to_flat(actions, SIZES))

    def state_dict(self) -> dict:
        return {"context": self.context, "generator": self.generator.get_state(), "violations": self.violations.clone()}

    def load_state_dict(self, state: dict) -> None:
        self.context, self.violations = state["context"], state["violations"]
        self.generator.set_state(state["generator"])


SMALL = {
    "hidden": 16, "policy_hidden": 8, "n_envs": 16, "n_draws": 16, "elbo_batch": 32, "steps": 1000, "gamma": 0.99,
    "posterior_fit_steps": 5, "actor_lr": 1e-3, "critic_lr": 3e-3, "clip": 0.5, "anneal": 0.9, "value_coef": 0.5,
}  # fmt: skip


def trainer(method="iar-a2c", env_seed=0, ending="terminated", **changes) -> Trainer:
    config = make_config("bandit", method, SMALL | changes)
    return Trainer(config, Bandit(config.n_envs, env_seed, ending))


def parameters(of: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for module in (of.policy, of.critic) for p in module.parameters()])


# ------------------------------------------------------------------------------------------------- returns


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_update_bootstraps_from_the_final_observation_where_truncated(ending):
    """mean (r + γ V(final) − V(s))², V(final) the value before the reset, or nothing where terminated."""
    one = trainer(ending=ending, n_steps=3)
    torch.nn.init.normal_(one.critic.value.weight)
    rollout = one.rollout()
    with torch.no_grad():
        value = one.critic(torch.cat([decision.observation for decision in rollout.decisions])).view(3, -1)
        final = one.critic(rollout.final_observation.flatten(0, 1)).view(3, -1)
    assert (rollout.final_observation[..., -1] == 1).all()
    expected = rollout.reward + (0.99 * final if ending == "truncated" else 0) - value
    one.update(rollout)
    found = one.sums[MEANS.index("value_loss")]
    torch.testing.assert_close(found, expected.square().mean())


def test_critic_learns_the_value():
    """Rewards that the context alone decides."""
    one = trainer("mask", critic_lr=1e-2, value_scale=1.0)
    value = torch.tensor([1.0, -2.0, 0.5])
    one.env.reward = value[:, None].expand(3, 9)
    for _ in range(150):
        one.step()
    torch.testing.assert_close(one.critic(one.observation).detach(), value[one.env.context], atol=0.2, rtol=0)


# ------------------------------------------------------------------------------------- gradients and clipping


def gradients(of: Trainer, **changes) -> dict[str, Tensor]:
    """What one update leaves in the flat gradients."""
    of.config = make_config("bandit", of.config.method, SMALL | changes)
    of.update(of.rollout())
    return {name: flat.grad.clone() for name, flat in of.parameters.items()}


@pytest.mark.parametrize("joint", [False, True])
def test_clipping(joint):
    """Apart: each norm at most `clip`, directions kept; joint: one norm, so that the critic eats the actor's share."""
    free = gradients(trainer(n_steps=2), n_steps=2, clip=1e9)
    clipped = gradients(trainer(n_steps=2), n_steps=2, clip=1e-3, joint_clip=joint)
    both, critic = torch.cat(list(free.values())).norm(), free["critic"].norm()
    policy = torch.cat(
        [gradient for name, gradient in free.items() if name != "critic"]
    ).norm()  # encoder and couplings
    for name, gradient in free.items():
        norm = both if joint else critic if name == "critic" else policy
        assert norm > 1e-3
        torch.testing.assert_close(clipped[name], gradient * 1e-3 / norm, rtol=1e-3, atol=1e-9)


def test_small_gradients_are_not_clipped():
    free, clipped = (gradients(trainer(), clip=clip) for clip in (1e9, 1e6))
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient, rtol=1e-5, atol=0)


def test_masked_update_is_plain_a2c():
    """∇[−mean A log π(a) − β mean H + c mean (R − V)²], written out with torch.distributions."""
    one = trainer("mask", entropy=0.1)
    torch.nn.init.normal_(one.critic.value.weight, std=0.1)
    rollout = one.rollout()
    (decision,) = rollout.decisions
    logits = one.policy.logits(one.policy.encoder(decision.observation))
    chosen = torch.distributions.Categorical(logits=logits.masked_fill(~one.env.valid(
        decision.observation, rejection.all_actions(SIZES, "cpu").expand(16, -1, -1)), -1e9))  # fmt: skip
    value = one.critic(decision.observation)
    returns = rollout.reward[0]
    beta = 0.1 * (1 - 16 / 900)
    loss = -((returns - value).detach() * chosen.log_prob(to_flat(decision.action, SIZES)) + beta * chosen.entropy())
    loss = loss.mean() + 0.5 * (returns - value).square().mean()
    expected = torch.autograd.grad(loss, [*one.policy.parameters(), *one.critic.parameters()])
    one.config = make_config("bandit", "mask", SMALL | {"entropy": 0.1, "clip": 1e9})
    one.update(rollout)
    found = [p.grad for module in (one.policy, one.critic) for p in module.parameters()]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------- the printed method, written out latent by latent


def slow_affine(layer, x, shift, sign):
    """One affine coupling, or its inverse (sign −1), of one vector; and log|det|."""
    half = layer.sizes[0]
    kept, changed = (x[half:], x[:half]) if layer.swap else (x[:half], x[half:])
    raw = layer.write.weight @ (layer.read.weight @ kept + shift).relu() + layer.write.bias
    scale, translation = 2 * (raw[: len(changed)] / 2).tanh(), raw[len(changed) :]
    changed = changed * scale.exp() + translation if sign > 0 else (changed - translation) * (-scale).exp()
    return torch.cat((changed, kept) if layer.swap else (kept, changed)), sign * scale.sum()


def slow_flow(flow, x, hidden, sign=1):
    layers, shifts, ladj = list(flow.layers), flow.context(hidden).chunk(len(flow.layers)), 0.0
    for layer, shift in list(zip(layers, shifts, strict=True))[::sign]:
        x, change = slow_affine(layer, x, shift, sign)
        ladj = ladj + change
    return x, ladj


def slow_base(policy, hidden):
    return torch.distributions.Normal(policy.mean(hidden), policy.log_scale(hidden).clamp(-5, 2).exp())


def slow_log_weight(policy, observation, action, noise):
    """log p(v|s) − log q(v|a, s) of one latent v, which `noise` becomes."""
    hidden, posterior = policy.encoder(observation[None])[0], policy.posterior
    one_hot = torch.cat([torch.eye(3, dtype=torch.float64)[a] for a in action])
    context = (posterior.state(hidden) + posterior.action.weight @ one_hot).relu()
    mean, log_scale = posterior.base(context).chunk(2)
    scale = log_scale.clamp(-5, 2).exp()
    u, ladj = slow_flow(posterior.flow, mean + scale * noise, context)
    log_q = torch.distributions.Normal(mean, scale).log_prob(mean + scale * noise).sum() - ladj
    v = []
    for d, chosen in enumerate(action):
        row = u[3 * d : 3 * d + 3]
        for k in range(3):
            gap = row[chosen] - row[k]
            v.append(row[k] if k == chosen else row[chosen] - torch.nn.functional.softplus(gap))
            log_q = log_q - (0.0 if k == chosen else torch.nn.functional.logsigmoid(gap))
    z, ladj = slow_flow(policy.flow, torch.stack(v), hidden, -1)
    return slow_base(policy, hidden).log_prob(z).sum() + ladj - log_q


def slow_sandwich(policy, w):
    low, high = w.mean(), 0.5 * ((2 * w).logsumexp(0) - math.log(len(w)))
    alpha = policy.alpha.net(torch.stack((low, high)).detach() / 10).sigmoid()[0]
    return alpha * low + (1 - alpha) * high


def printed(seed: int = 5) -> tuple[Trainer, torch.nn.Module, torch.nn.Module]:
    """A trainer of the printed method that remembers a rollout; copies in float64 of its policy and its critic."""
    one = trainer("iar-a2c-paper", n_draws=6, n_envs=8, elbo_batch=10)
    for k, module in enumerate((one.policy, one.critic)):
        randomise(module, seed + k, 0.3)
    one._remember(one.rollout())
    return one, deepcopy(one.policy).double(), deepcopy(one.critic).double()


def assert_stepped(one: Trainer, modules, loss: Tensor, before: list[Tensor]) -> None:
    """Gradients, clipped together, and parameters after a first step of TensorFlow's RMSprop: those of `loss`."""
    expected = torch.autograd.grad(loss, [p for module in modules for p in module.parameters()])
    norm = torch.stack([g.norm() for g in expected]).norm()
    assert norm > 0.5
    found = [(p, rate) for module, rate in ((one.policy, one.config.actor_lr), (one.critic, one.config.critic_lr))
             for p in module.parameters()][: len(before)]  # fmt: skip
    largest = max(float(g.abs().max()) for g in expected) * 0.5 / norm
    for (ours, rate), start, gradient in zip(found, before, expected, strict=True):
        gradient = gradient * 0.5 / norm
        assert (ours.grad - gradient).abs().max() < 1e-5 * largest
        step = rate * gradient / (0.99 + 0.01 * gradient.square() + 1e-5).sqrt()
        assert (ours.detach() - (start - step)).abs().max() < 1e-5 * max(1.0, float(start.abs().max()))


def test_printed_update_against_loops():
    """∇ mean A (log π̂(a) − (S/l²) Σ_{j≤l} log π̂(a_j)), log π̂ the sandwich, one a state and action; and the critic.

    The posterior's noise is in the order in which the actions of a state were drawn, the executed one for invalid ones.
    """
    one, policy, critic = printed()
    rollout = one.rollout()
    (decision,) = rollout.decisions
    generator = one.generator.clone_state()
    value = critic(decision.observation.double())
    advantage = (rollout.reward[0] - value).detach()
    pairs, valid = [], decision.valid.tolist()
    for b, row in enumerate(decision.sample.action.tolist()):
        executed = decision.action[b].tolist()
        row = [tuple(a) if ok else tuple(executed) for a, ok in zip(row, valid[b], strict=True)]
        pairs += [(b, a) for a in dict.fromkeys(row)]
    noise = torch.randn(len(pairs), 1, 4, 6, generator=generator).double()[:, 0]
    estimate = {
        (b, a): slow_sandwich(policy, torch.stack([
            slow_log_weight(policy, decision.observation[b].double(), a, noise[i, n]) for n in range(4)
        ])) for i, (b, a) in enumerate(pairs)
    }  # fmt: skip
    gain = 0.0
    for b in range(8):
        drawn = [tuple(a) for a, ok in zip(decision.sample.action[b].tolist(), valid[b], strict=True) if ok]
        S, l = 6, len(drawn)  # noqa: E741
        mean = sum(S / l**2 * estimate[b, a] for a in drawn)
        gain = gain + advantage[b] * (estimate[b, tuple(decision.action[b].tolist())] - mean) / 8
    assert len(set(pairs)) < 8 * 6 and not decision.valid.all() and (decision.draws == 6).all()
    loss = -gain + 0.5 * (rollout.reward[0] - value).square().mean()
    before = [p.detach().clone() for module in (policy, critic) for p in module.parameters()]
    one.update(rollout)
    assert_stepped(one, (policy, critic), loss, before)


def test_printed_elbo_step_against_loops():
    """Algorithm 1: ∇ mean (log p(v|s) − log q(v|a, s)), a = argmax of a draw from the policy, v ~ q, N a state."""
    one, policy, _ = printed()
    generator, (states,) = one.generator.clone_state(), one.memory
    rows = torch.randint(len(states), (10,), generator=generator).tolist()
    base, noise = (torch.randn(shape, generator=generator).double()[:, 0] for shape in ((10, 1, 6), (10, 1, 4, 6)))
    w = []
    for i, row in enumerate(rows):
        hidden = policy.encoder(states[row][None].double())[0]
        normal = slow_base(policy, hidden)
        latent, _ = slow_flow(policy.flow, normal.mean + normal.stddev * base[i], hidden)
        action = latent.view(2, 3).argmax(-1).tolist()
        w += [slow_log_weight(policy, states[row].double(), action, noise[i, n]) for n in range(4)]
    before = [p.detach().clone() for p in policy.parameters()]
    loss = -torch.stack(w).mean() + 0 * sum(p.sum() for p in policy.alpha.parameters())  # α has no part in it
    one.elbo_step(one._elbo_groups())
    assert_stepped(one, (policy,), loss, before)


@pytest.mark.parametrize("ran, left", [(0, 1.0), (225, 0.75), (450, 0.5), (900, 0.0), (1000, 0.0)])
def test_annealing_is_linear_to_nothing(ran, left):
    one = trainer(anneal=0.9, steps=1000)
    one.env_steps = ran
    assert one.annealed() == pytest.approx(left)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("when, matters", [(0, True), (900, False)])
def test_regularisers_act_until_they_are_annealed(method, when, matters):
    """The gradient with entropy (and, for flows, latent KL) differs from that without, but not at the end."""
    found = []
    for strength in (0.0, 1.0):
        changes = {"entropy": strength, "latent_kl": strength if method in FLOW_METHODS else 0.0, "clip": 1e9}
        one = trainer(method, **changes)
        one.env_steps = when
        found.append(gradients(one, **changes)["actor"])
    assert torch.allclose(*found, rtol=0, atol=1e-9) != matters


@pytest.mark.parametrize("estimator", ["rb", "latent"])
def test_states_without_a_valid_draw_carry_no_policy_gradient(estimator):
    """Enumerated steps teach the critic alone; bonus, entropy and advantage are all left out."""
    one = trainer(
        estimator=estimator, n_draws=2, max_draws=2, correction="mean", latent_kl=1.0, valid_bonus=1.0, entropy=1.0
    )
    torch.nn.init.normal_(one.critic.value.weight)
    one.oracle = lambda observation, action: (one.env.valid(observation, action) if action.shape[1] > 2
                                              else torch.zeros(action.shape[:2], dtype=torch.bool))  # fmt: skip
    rollout = one.rollout()
    assert one.counts["enumerations"] == 16 and one.env.violations == 0
    one.update(rollout)
    assert one.parameters["actor"].grad.abs().sum() == 0
    assert one.parameters["critic"].grad.abs().sum() > 0


def test_a_reward_shift_is_the_critics_and_the_advantages_alone():
    """A shift of 2 a step is what a rollout of rewards 2 higher teaches; episodes are evaluated unshifted."""
    shifted, plain = trainer(reward_shift=2.0), trainer()
    rollout = plain.rollout()
    assert torch.equal(shifted.rollout().reward, rollout.reward)
    shifted.update(rollout)
    plain.update(rollout._replace(reward=rollout.reward + 2))
    assert torch.equal(parameters(shifted), parameters(plain))
    returns = [one.evaluate(Bandit(16, 1), 16, seeded(0, "evaluation"))[0] for one in (shifted, plain)]
    assert torch.equal(*returns) and returns[0].abs().max() <= 1


def test_the_scale_of_rewards_survives_a_checkpoint():
    one, other = trainer(normalise_reward=True), trainer(normalise_reward=True)
    one.step()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.reward_scale.past, one.reward_scale.past)
    assert torch.equal(other.reward_scale.moments, one.reward_scale.moments) and one.reward_scale.moments[0] == 16


@pytest.mark.parametrize("sampled", [True, False])
def test_the_exact_entropy_counts_in_states_with_a_valid_draw(sampled):
    """One factored draw a state: its policy's entropy is known exactly, and is left out where A was listed."""
    one = trainer("factored-iar", correction="none", n_draws=1, max_draws=1, valid_bonus=0.0, entropy=1.0)
    one.oracle = lambda observation, action: (torch.ones if sampled or action.shape[1] > 1 else torch.zeros)(
        action.shape[:2], dtype=torch.bool
    )
    with torch.no_grad():
        one.policy.logits.bias += torch.randn(one.policy.logits.bias.shape, generator=torch.Generator().manual_seed(0))
    decision, _ = one.decide(one.observation, one.generator)
    zero = torch.zeros(len(one.observation))
    features = one.policy.features(decision.observation)
    surrogate = one.policy.score_surrogate(features, decision.sample)
    _, entropy, regulariser = one._weights(decision, decision.n_valid, zero, features, surrogate)
    assert entropy > 0
    assert regulariser.item() == pytest.approx(-entropy.item() * sampled)


# ------------------------------------------------------------------------ devices, repeatability, checkpoints


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_no_tensor_is_made_on_the_default_device(method, low):
    """Rollout, redraws, enumeration and update on the CPU while the default device is "meta"."""
    changes = {"n_draws": 2, "max_draws": 4} if low and method != "mask" else {}
    one = trainer(method, **changes)
    torch.set_default_device("meta")
    try:
        for _ in range(3):
            one.step()
    finally:
        torch.set_default_device(None)
    assert torch.isfinite(parameters(one)).all()
    assert (one.counts["enumerations"] > 0) == bool(changes)


PURPOSES = ("weights", "policy", "env", "exact", "policy/final", "env/final", "env/evaluation 5000")


def test_seeds_and_purposes_have_streams_of_their_own():
    """No two of 100 seeds × 7 purposes start alike: torch's CPU generator looks at 32 bits of its seed."""
    first = {float(torch.rand(1, generator=seeded(seed, purpose), dtype=torch.float64)): (seed, purpose)
             for seed in range(100) for purpose in PURPOSES}  # fmt: skip
    assert len(first) == 100 * len(PURPOSES)


def test_streams_are_the_same_every_time():
    one, other = (torch.rand(3, generator=seeded(4, "policy")) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_parameters(method):
    """Bit for bit after five steps, whatever torch's global generator; another seed, others."""
    found = []
    for seed, noise in ((1, 7), (1, 8), (2, 7)):
        torch.manual_seed(noise)
        one = trainer(method, seed=seed)
        for _ in range(5):
            one.step()
        found.append(parameters(one))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("method", [*METHODS, "cis"])
def test_a_checkpoint_continues_bit_for_bit(method):
    """Three steps, saved as on disk, three more; a new trainer with other draws behind it takes up the checkpoint."""
    method, changes = ("iar-a2c", {"estimator": "cis"}) if method == "cis" else (method, {})
    one, other = trainer(method, seed=1, **changes), trainer(method, seed=1, env_seed=99, **changes)
    for _ in range(3):
        one.step()
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    other.step()
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for _ in range(3):
        one.step()
        other.step()
    assert torch.equal(parameters(one), parameters(other))
    assert torch.equal(one.observation, other.observation)
    assert one.env_steps == other.env_steps
    ours, theirs = one.summary(), other.summary()
    assert str(ours) == str(theirs) and ours["states"] > 0


# ----------------------------------------------------------------------------------------- what isn't finite


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", ["reward", "observation", "final_observation"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_and_the_weights_stay(method, part, value):
    """The next rollout's update is refused, naming what, where and when; no weight, nor any mean square, has moved."""
    one = trainer(method, n_steps=2, ending="truncated")  # so that values of final observations count
    for _ in range(2):
        one.step()
    step = one.env.step

    def broken(action):
        result = step(action)
        spoilt = getattr(result, part).clone()
        spoilt[5] = value
        return result._replace(**{part: spoilt})

    one.env.step = broken
    before = parameters(one), deepcopy([o.state_dict()["state"] for o in one.optimisers.values()])
    said = rf"^bandit, the rollout that ended at step [0-9]+: the {part.replace('_', ' ')} of environment 5 is not fin"
    if part == "observation" and method == "mask":
        said = "^an observation is not finite"
    with pytest.raises(FloatingPointError, match=said):
        one.step()
    assert torch.equal(parameters(one), before[0])
    for was, optimiser in zip(before[1], one.optimisers.values(), strict=True):
        now = optimiser.state_dict()["state"]
        assert was.keys() == now.keys()
        assert all(torch.equal(was[k][name], now[k][name]) for k in was for name in was[k])


@pytest.mark.parametrize("settings", [{}, {"coupling": "mixture"}, {"estimator": "elbo", "coupling": "affine"}])
def test_a_learning_rate_that_is_too_large_spoils_nothing(settings):
    """However large the step, weights stay numbers: training goes on, or stops in one line."""
    one = trainer(**{"actor_lr": 1e30, "critic_lr": 1e30} | settings)
    with pytest.raises(FloatingPointError, match="the gradient is not finite; lower actor_lr, critic_lr or clip"):
        for _ in range(50):
            one.step()
    assert torch.isfinite(parameters(one)).all()


# ------------------------------------------------------------------------------------------ every estimator


@pytest.mark.parametrize("coupling", ["additive", "affine"])
@pytest.mark.parametrize("posterior", ["gaussian", "flow"])
@pytest.mark.parametrize("estimator", ["rb", "latent", "cis", "elbo", "cubo", "iwae", "sandwich"])
def test_every_estimator_trains(estimator, posterior, coupling):
    one = trainer(estimator=estimator, posterior=posterior, coupling=coupling, base_scale="learned")
    before = parameters(one)
    for _ in range(2):
        one.step()
    after = parameters(one)
    assert torch.isfinite(after).all()
    assert (after != before).float().mean() > 0.5


@pytest.mark.parametrize("kind", ["static", "trainable", "adaptive"])
def test_alpha_is_trained_by_the_policy_gradient(kind):
    """Every parameter of α moves in the A2C update, and α with them; a static one has none."""
    one = trainer("iar-a2c-paper", alpha=kind, actor_lr=1e-2)
    before = [p.clone() for p in one.policy.alpha.parameters()]
    for _ in range(4):
        one.update(one.rollout())
    after = list(one.policy.alpha.parameters())
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert len(after) == {"static": 0, "trainable": 1, "adaptive": 4}[kind]
    low, high = torch.tensor([-3.0]), torch.tensor([-2.0])
    assert (float(torch.as_tensor(one.policy.alpha(low, high)).detach()) != 0.5) == (kind != "static")


@pytest.mark.parametrize(
    "estimator, encoder, moved",
    [
        ("sandwich", True, {"actor", "flow", "posterior"}),
        ("sandwich", False, {"actor", "flow", "posterior"}),
        ("cis", True, {"posterior"}),
    ],
)
def test_elbo_steps_move_what_they_should(estimator, encoder, moved):
    """Algorithm 1: (φ, w, ψ), or without the encoder, ψ alone where the posterior only proposes; it
    raises the ELBO of a nearly uniform policy to nearly −log 9, its supremum."""
    one = trainer(estimator=estimator, elbo_encoder=encoder, posterior_fit_steps=0, actor_lr=3e-3)
    assert ("encoder" in one.parameters) != encoder
    one._remember(one.rollout())
    before = {name: flat.detach().clone() for name, flat in one.parameters.items()}
    history = []
    for _ in range(60):
        one.sums.zero_()
        one.elbo_step(one._elbo_groups())
        history.append(float(one.sums[MEANS.index("elbo")]))
    assert {name for name, flat in one.parameters.items() if not torch.equal(flat, before[name])} == moved
    assert history[0] < -4 and -math.log(9) - 0.5 < sum(history[-10:]) / 10 < -math.log(9) + 0.2


def test_the_posterior_is_fitted_before_the_policy_moves():
    one = trainer(estimator="elbo", posterior_fit_steps=5)
    before = {name: flat.detach().clone() for name, flat in one.parameters.items()}
    one._fit_posterior_first()
    assert not torch.equal(one.parameters["posterior"], before["posterior"])
    assert torch.equal(one.parameters["actor"], before["actor"])
    assert torch.equal(one.parameters["critic"], before["critic"])


@pytest.mark.parametrize("elbo_steps", [1, 3])
def test_the_recorded_elbo_is_a_mean(elbo_steps):
    """In nats an action, however many steps of Algorithm 1 follow an update; NaN without a posterior."""
    one = trainer(estimator="elbo", elbo_steps=elbo_steps, actor_lr=0.0)
    for _ in range(10):
        one.step()
    with torch.no_grad():
        features = one.policy.features(torch.cat(one.memory))
        action = one.policy.sample(features, 1, one.generator).action
        w, _ = one.policy.log_weights(features, action, 100, one.generator)
    assert one.summary()["elbo"] == pytest.approx(float(w.mean()), abs=0.5)
    assert math.isnan(trainer().summary()["elbo"])


# -------------------------------------------------------------------------------------------- learning

FAST = {
    "n_envs": 32,
    "entropy": 0.2,
    "value_scale": 1.0,
    "critic_lr": 1e-2,
    "actor_lr": 5e-3,
    "posterior_fit_steps": 50,
}
LEARNING = {method: (method, 80, {}) for method in METHODS} | {
    "iar-a2c-paper": (
        "iar-a2c-paper",
        100,
        {"actor_lr": 3e-3, "n_draws": 32, "policy_hidden": 16, "n_couplings": 2, "optimiser": "rmsprop"},
    ),
    "iar-a2c-released": (
        "iar-a2c-released",
        150,
        {"actor_lr": 3e-3, "n_draws": 32, "policy_hidden": 16, "n_couplings": 2, "optimiser": "rmsprop"},
    ),
    "TensorFlow's RMSprop": ("iar-a2c", 150, {"optimiser": "rmsprop_tf", "actor_lr": 0.3, "critic_lr": 0.3}),
    "mask": ("mask", 80, {"n_draws": 1}),
    "latent": ("iar-a2c", 80, {"estimator": "latent"}),
    "cis": ("iar-a2c", 80, {"estimator": "cis"}),
    "four of the valid draws": ("iar-a2c", 80, {"n_correction": 4}),
    "rollouts of two steps": ("iar-a2c", 60, {"n_steps": 2}),
}


def learn(one: Trainer, steps: int) -> tuple[float, float]:
    """Mean reward in a copy of the environment before and after, where no invalid action may be executed."""
    noise, scores = torch.Generator().manual_seed(5), []
    for _ in range(2):
        env = Bandit(500, seed=3)
        env.allowed = one.env.allowed
        returns, counts = one.evaluate(env, 500, noise)
        assert env.violations == 0 and counts["states"] == 500
        scores.append(float(returns.mean()))
        if len(scores) == 1:
            for _ in range(steps):
                one.step()
            assert one.env.violations == 0 and one.env_steps >= 32 * steps
    return tuple(scores)


@pytest.mark.parametrize("name", LEARNING)
def test_every_method_learns(name):
    """From about .2 to .95 of the best valid action's reward; the forbidden one, which pays 5, is never executed."""
    method, steps, changes = LEARNING[name]
    one = trainer(method, **(FAST | {"steps": 32 * steps * changes.get("n_steps", 1)} | changes))
    before, after = learn(one, steps)
    assert before < 0.3 and after > 0.95
    assert one.counts["enumerations"] == 0


def test_the_printed_correction_climbs_down_where_few_actions_are_valid():
    """Two of nine actions valid and S = 16: l < √S. All else equal, leave-one-out finds the best one."""
    after = {}
    for correction in ("paper", "leave_one_out"):
        one = trainer(**(FAST | {"steps": 32 * 60, "correction": correction, "valid_bonus": 0.0, "entropy": 0.0}))
        one.env.allowed = torch.zeros(3, 9, dtype=torch.bool)
        for action in (BEST, (BEST + 1) % 9):
            one.env.allowed[torch.arange(3), action] = True
        before, after[correction] = learn(one, 60)
        assert 0.4 < before < 0.6
    assert after["leave_one_out"] > 0.9 and after["paper"] < 0.4


# --------------------------------------------------------------------------------------------- evaluation


class Counted(Bandit):
    """Episodes of b + 1 steps in environment b, reward 1 a step: returns are known."""

    def step(self, action):
        self.time = getattr(self, "time", 0) + 1
        observation, reward, ends, _, final = super().step(action)
        last = torch.arange(self.n_envs) + 1 <= self.time
        return Step(
            observation, torch.ones_like(reward), last & (self.time % 2 == 0), last & (self.time % 2 == 1), final
        )


def test_evaluation_counts_one_episode_each():
    """Whether it ends by termination or truncation; what comes after its end does not count."""
    one = trainer()
    returns, counts = one.evaluate(Counted(7), 7, torch.Generator().manual_seed(0))
    assert returns.tolist() == [1, 2, 3, 4, 5, 6, 7] and returns.dtype == torch.float64
    assert counts["states"] == 49
    assert one.env_steps == 0 and one.counts["states"] == 0


def test_summary_counts_and_averages():
    """Counts since the start, means since the last summary."""
    one = trainer(n_draws=64)
    norms = []
    for _ in range(2):
        one.step()
        norms.append(float(one.parameters["critic"].grad.norm()))
    first = one.summary()
    assert first["states"] == 32 and first["draws"] == 32 * 64 and first["asked"] == 32 * 64
    assert 0 < first["valid"] < first["draws"]
    assert first["grad_norm_critic"] > 0 and all(norm <= 0.5 + 1e-5 for norm in norms)
    again = one.summary()
    assert again["states"] == 32 and again["grad_norm_critic"] == 0
