"""Notebook 13's plain PyTorch against the library: one set of weights, one rollout, the same gradients and decisions.

Exactly where nothing is drawn; in expectation, z < 5 with fixed seeds, where posterior samples or actions are.
"""

import ast
import functools

import nbformat
import pytest
import torch

from flowrl import envs
from flowrl.a2c import Rollout, Trainer
from flowrl.policies import Sample, to_flat
from flowrl.rejection import Decision
from flowrl.study.config import make_config
from flowrl.study.records import ROOT

CELLS = nbformat.read(ROOT / "notebooks/13_iar_a2c_from_scratch.ipynb", 4).cells
ALGORITHM = [cell.source for cell in CELLS if "algorithm" in cell.metadata.get("tags", [])]
N_ENVS, WIDTH, S, N = 16, 16, 8, 3
NAMES = {  # of parameters: the notebook's and the library's
    "flow.": "flow.layers.",
    "log_scale": "log_scale.value",
    "posterior.0.": "posterior.state.",
    "posterior.2.": "posterior.base.",
    "critic.0.": "encoder.",
    "critic.1.": "value.",
    "encoder.": "encoder.net.",
}
CORRECTIONS = {"none": "none", "printed": "paper", "mean": "mean", "leave_one_out": "leave_one_out"}


@pytest.fixture(scope="module")
def scratch():
    """The names that the notebook's algorithm defines, its networks made small."""
    names = {"seed": 0}
    for source in ALGORITHM:
        exec(source, names)
    names.update(hidden=WIDTH, S=S, N=N)
    return names


def make(scratch, score="latent", correction="leave_one_out", time=0):
    """The notebook's networks, shaken, and a trainer of the library with the same weights that stand still."""
    env = envs.make_batched("ERA-v1", N_ENVS, generator=torch.Generator().manual_seed(1))
    env.adjacency = None  # an encoder that knows no graph, as in the notebook
    networks = scratch["networks"]()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    config = make_config(
        "ERA-v1",
        "iar-a2c-released",
        dict(estimator=score, alpha="static", n_posterior=N, posterior="gaussian", elbo_encoder=True,
             correction=CORRECTIONS[correction], n_draws=S, n_correction=S, n_couplings=2, hidden=WIDTH,
             policy_hidden=WIDTH, gamma=0.95, value_scale=20.0, actor_lr=0.0, critic_lr=0.0, clip=1e9,
             joint_clip=False, n_envs=N_ENVS, elbo_batch=N_ENVS),
    )  # fmt: skip
    trainer = Trainer(config, env)
    policy, posterior, critic = networks
    own = [("", policy)] + [("posterior.", posterior)] * (score == "sandwich")
    trainer.policy.load_state_dict(as_library(own, lambda p: p.data))
    trainer.critic.load_state_dict(as_library([("critic.", critic)], lambda p: p.data))
    env.time = time
    return networks, trainer, own


def as_library(modules, of):
    """`of` every parameter of the notebook's modules, by the library's names.

    The library's couplings share one `context`; its posterior has a layer each for state and action.
    """
    found, contexts = {}, {}
    for prefix, module in modules:
        for name, parameter in module.named_parameters():
            name, value = prefix + name, of(parameter)
            if "flow." in name and ".state." in name:
                contexts.setdefault(f"flow.context.{name.rpartition('.')[2]}", []).append(value)
            elif name == "posterior.0.weight":
                found["posterior.state.weight"], found["posterior.action.weight"] = value[:, :WIDTH], value[:, WIDTH:]
            else:
                found[functools.reduce(lambda name, pair: name.replace(*pair), NAMES.items(), name)] = value
    return found | {name: torch.cat(parts) for name, parts in contexts.items()}


def gradient(p):
    return torch.zeros_like(p) if p.grad is None else p.grad.clone()


def as_rollout(tau):
    """The notebook's τ as the library's rollout."""
    decisions = []
    for s, a, v, valid, draws, chosen, _ in tau:
        executed = a[torch.arange(len(a)), chosen]
        decisions.append(Decision(s, None, Sample(a, v), valid, valid.sum(1), draws, chosen, executed, valid.any(1)))
    return Rollout(decisions, *(torch.stack([getattr(t[-1], name) for t in tau]) for name in Rollout._fields[1:]))


def gradients(scratch, networks, trainer, own, tau, score, correction):
    """Of the same batch: the notebook's gradients and the library's, each one long vector."""
    networks.zero_grad()
    scratch["loss"](*networks, tau, score, correction).backward()
    ours = as_library(own, gradient), as_library([("critic.", networks[2])], gradient)
    trainer.update(as_rollout(tau))
    theirs = [{name: p.grad for name, p in module.named_parameters()} for module in (trainer.policy, trainer.critic)]
    return [torch.cat([part[name].flatten().clone() for part, ref in zip(parts, ours, strict=True) for name in ref])
            for parts in (ours, theirs)]  # fmt: skip


def test_the_algorithm_is_plain_torch():
    imported = [node for source in ALGORITHM for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Import | ast.ImportFrom)]  # fmt: skip
    ours = [ast.unparse(node) for node in imported if "flowrl" in ast.unparse(node)]
    assert ours == ["from flowrl import envs"]


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_latent_gradient_is_the_librarys(scratch, correction):
    """Three steps, the second of which ends the episodes by time."""
    networks, trainer, own = make(scratch, correction=correction, time=98)
    needed = 2 if correction == "leave_one_out" else 1
    tau, _ = scratch["rollout"](networks[0], trainer.env, trainer.env.observe(
        trainer.env.allocation, trainer.env.emergency), needed, t_max=3)  # fmt: skip
    assert tau[1][-1].truncated.all()
    ours, theirs = gradients(scratch, networks, trainer, own, tau, "latent", correction)
    assert ours.norm() > 1
    assert (ours - theirs).norm() < 1e-4 * ours.norm()


def z_of(ours, theirs):
    """Largest |z| of any component of the difference of two sets of gradients (R, P), and its relative length."""
    difference = ours.mean(0) - theirs.mean(0)
    error = ((ours.var(0) + theirs.var(0)) / len(ours)).sqrt()
    moving = error > 1e-9
    return float((difference[moving] / error[moving]).abs().max()), float(difference.norm() / ours.mean(0).norm())


def test_sandwich_gradient_is_the_librarys_in_expectation(scratch):
    networks, trainer, own = make(scratch, "sandwich", "printed")
    tau, _ = scratch["rollout"](networks[0], trainer.env, trainer.env.reset(), needed=1)
    both = [gradients(scratch, networks, trainer, own, tau, "sandwich", "printed") for _ in range(300)]
    z, distance = z_of(*(torch.stack(side) for side in zip(*both, strict=True)))
    assert z < 5
    assert distance < 0.2


def test_algorithm_1_is_the_librarys_in_expectation(scratch):
    networks, trainer, own = make(scratch, "sandwich", "printed")
    policy, posterior, _ = networks
    trainer.memory = [trainer.env.reset()]
    both = []
    for _ in range(300):
        networks.zero_grad()
        scratch["elbo_loss"](policy, posterior, trainer.memory[0].repeat(4, 1, 1)).backward()
        ours = as_library(own, gradient)
        trainer.elbo_step(trainer._elbo_groups())
        theirs = {name: p.grad for name, p in trainer.policy.named_parameters()}
        both.append([torch.cat([side[name].flatten() for name in ours]) for side in (ours, theirs)])
    z, distance = z_of(*(torch.stack(side) for side in zip(*both, strict=True)))
    assert z < 5
    assert distance < 0.2


def test_decisions_are_the_librarys(scratch):
    """What is executed in one state, 20,000 times: as often either way."""
    networks, trainer, _ = make(scratch)
    s = trainer.env.reset()[:1].expand(20_000, -1, -1)
    a, _, valid, _, chosen = scratch["act"](networks[0], trainer.env, s, needed=2)
    assert valid.gather(1, chosen.unsqueeze(1)).all()
    decision, _ = trainer.decide(s, trainer.generator)
    sizes = trainer.env.action_sizes
    ours, theirs = (to_flat(x, sizes).bincount(minlength=216).double() / 20_000
                    for x in (a[torch.arange(len(a)), chosen], decision.action))  # fmt: skip
    error = ((ours + theirs) / 20_000).sqrt()
    assert ((ours - theirs).abs() <= 5 * error).all()
    assert (ours > 0).sum() > 20
