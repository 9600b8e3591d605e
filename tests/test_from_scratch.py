"""Notebook 13's plain PyTorch against the library: one set of weights, one rollout, the same gradients and decisions.

Exactly where nothing is drawn; in expectation, z < 5 with fixed seeds, where posterior samples or actions are.
"""

import ast
import copy

import nbformat
import pytest
import torch

from flowrl import envs
from flowrl.a2c import Rollout, Trainer
from flowrl.optimisers import RMSpropTF
from flowrl.policies import Sample, to_flat
from flowrl.rejection import Decision
from flowrl.study.config import make_config
from flowrl.study.records import ROOT

CELLS = nbformat.read(ROOT / "notebooks/13_iar_a2c_from_scratch.ipynb", 4).cells
ALGORITHM = [cell.source for cell in CELLS if "algorithm" in cell.metadata.get("tags", [])]
N_ENVS, WIDTH, S, N = 16, 16, 8, 3
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
    """The notebook's agent, its weights shaken, and a trainer of the library with the same weights that stand still."""
    env = envs.make_batched("ERA-v1", N_ENVS, generator=torch.Generator().manual_seed(1))
    env.adjacency = None  # an encoder that knows no graph, as in the notebook
    agent = scratch["Agent"](env)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in (p for network in agent.networks for p in network.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
    config = make_config(
        "ERA-v1",
        "iar-a2c-released",
        dict(estimator=score, alpha="static", n_posterior=N, correction=CORRECTIONS[correction], n_draws=S,
             n_correction=S, n_couplings=2, hidden=WIDTH, policy_hidden=WIDTH, gamma=0.95, value_scale=20.0,
             actor_lr=0.0, critic_lr=0.0, clip=1e9, joint_clip=False, n_envs=N_ENVS, elbo_batch=N_ENVS,
             elbo_encoder=score == "latent"),
    )  # fmt: skip
    trainer = Trainer(config, env)
    policy, posterior, critic = agent.networks
    own = [("", policy)] + [("posterior.", posterior)] * (score == "sandwich")
    trainer.policy.load_state_dict(as_library(own, lambda p: p.data))
    trainer.critic.load_state_dict(as_library([("", critic)], lambda p: p.data))
    env.time = time
    return agent, trainer, own


def as_library(modules, of):
    """`of` every parameter of the notebook's modules, by the library's names: its couplings share one `context`."""
    found, contexts = {}, {}
    for prefix, module in modules:
        for name, parameter in module.named_parameters():
            name = prefix + name.replace("encoder.", "encoder.net.").replace("log_scale", "log_scale.value")
            if "flow." in name and ".state." in name:
                contexts.setdefault(f"{prefix}flow.context.{name.rpartition('.')[2]}", []).append(of(parameter))
            else:
                found[name.replace("flow.", "flow.layers.")] = of(parameter)
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


def gradients(scratch, agent, trainer, own, tau, score, correction):
    """Of the same batch: the notebook's gradients and the library's, each one long vector."""
    for network in agent.networks:
        network.zero_grad()
    actor_loss, critic_loss = scratch["losses"](*agent.networks, tau, score, correction)
    (actor_loss + critic_loss / 2).backward()
    ours = as_library(own, gradient), as_library([("", agent.networks[2])], gradient)
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
    agent, trainer, own = make(scratch, correction=correction, time=98)
    needed = 2 if correction == "leave_one_out" else 1
    tau, _ = scratch["rollout"](agent.networks[0], trainer.env, trainer.env.observe(
        trainer.env.allocation, trainer.env.emergency), needed, t_max=3)  # fmt: skip
    assert tau[1][-1].truncated.all()
    ours, theirs = gradients(scratch, agent, trainer, own, tau, "latent", correction)
    assert ours.norm() > 1
    assert (ours - theirs).norm() < 1e-4 * ours.norm()


def z_of(ours, theirs):
    """Largest |z| of any component of the difference of two sets of gradients (R, P), and its relative length."""
    difference = ours.mean(0) - theirs.mean(0)
    error = ((ours.var(0) + theirs.var(0)) / len(ours)).sqrt()
    moving = error > 1e-9
    return float((difference[moving] / error[moving]).abs().max()), float(difference.norm() / ours.mean(0).norm())


def test_sandwich_gradient_is_the_librarys_in_expectation(scratch):
    agent, trainer, own = make(scratch, "sandwich", "printed")
    tau, _ = scratch["rollout"](agent.networks[0], trainer.env, trainer.env.reset(), needed=1)
    both = [gradients(scratch, agent, trainer, own, tau, "sandwich", "printed") for _ in range(300)]
    z, distance = z_of(*(torch.stack(side) for side in zip(*both, strict=True)))
    assert z < 5
    assert distance < 0.2


def test_algorithm_1_is_the_librarys_in_expectation(scratch):
    agent, trainer, own = make(scratch, "sandwich", "printed")
    policy, posterior, _ = agent.networks
    trainer.memory = [trainer.env.reset()]
    both = []
    for _ in range(300):
        policy.zero_grad(), posterior.zero_grad()
        scratch["elbo_loss"](policy, posterior, trainer.memory[0].repeat(4, 1, 1)).backward()
        assert all(p.grad is None for p in policy.encoder.parameters())  # the encoder is left alone
        ours = as_library(own, gradient)
        trainer.elbo_step(trainer._elbo_groups())
        names = [name for name in ours if not name.startswith("encoder.")]
        theirs = dict(trainer.policy.named_parameters())
        both.append([torch.cat([x.flatten().clone() for x in side])
                     for side in ([ours[name] for name in names], [theirs[name].grad for name in names])])  # fmt: skip
    z, distance = z_of(*(torch.stack(side) for side in zip(*both, strict=True)))
    assert z < 5
    assert distance < 0.2


def test_decisions_are_the_librarys(scratch):
    """What is executed in one state, 20,000 times: as often either way."""
    agent, trainer, _ = make(scratch)
    s = trainer.env.reset()[:1].expand(20_000, -1, -1)
    a, _, valid, _, chosen = scratch["act"](agent.networks[0], trainer.env, s, needed=2)
    assert valid.gather(1, chosen.unsqueeze(1)).all()
    decision, _ = trainer.decide(s, trainer.generator)
    sizes = trainer.env.action_sizes
    ours, theirs = (to_flat(x, sizes).bincount(minlength=216).double() / 20_000
                    for x in (a[torch.arange(len(a)), chosen], decision.action))  # fmt: skip
    error = ((ours + theirs) / 20_000).sqrt()
    assert ((ours - theirs).abs() <= 5 * error).all()
    assert (ours > 0).sum() > 20


def test_optimiser_is_the_librarys(scratch):
    """Five clipped steps of the critic, bit for bit but for rounding."""
    agent, trainer, _ = make(scratch)
    critic, theirs = agent.networks[2], copy.deepcopy(agent.networks[2])
    ours, optimiser = scratch["RMSprop"](critic, lr=0.01), RMSpropTF(theirs.parameters(), lr=0.01)
    s = trainer.env.reset()
    for _ in range(5):
        critic(s).square().mean().backward()
        theirs(s).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        ours.step(), optimiser.step()
        theirs.zero_grad()
    for p, q in zip(critic.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)
