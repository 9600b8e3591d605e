"""Rejection of invalid actions and the gradient it asks for (paper, section 5: Theorem 1, Lemma 1, Algorithm 2).

S actions are drawn a state, the oracle says which are valid, one of the l valid ones, uniformly, is executed. An action
that the oracle refused is never executed: without a valid draw S is doubled up to a cap, then A is enumerated if it is
small, then the environment's fallback is called, else `NoValidActionError`. Such steps carry no policy gradient. With
chains on, `chains` take over from a known valid action where fewer than two draws are valid; those steps learn.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .beyond import chains
from .policies import Sample, to_digits

NOTHING = -1  # all entries of the action where nothing is valid, if the environment knows what becomes of such a state


COUNTS = ("asked", "resamples", "chains", "chain_calls", "enumerations", "fallbacks")  # what `decide` counts


class NoValidActionError(RuntimeError):
    """No valid action was found in a state, by any means allowed."""


class Decision(NamedTuple):
    """What was drawn in B states, S draws each, and what is executed."""

    observation: Tensor  # (B, …)
    mask: Tensor | None  # (B, |A|) bool, for policies that ask the oracle for all of A
    sample: Sample  # (B, S, D), and latents; where redrawn, valid draws first; where chains took over, theirs first
    valid: Tensor  # (B, S) bool: what stands for draws from π'
    n_valid: Tensor  # (B,) int64, l in the paper's formulas, all valid plain draws
    draws: Tensor  # (B,) int64, S in the paper's formulas, all plain draws made
    chosen: Tensor  # (B,) int64, which of the S is executed
    action: Tensor  # (B, D) int64, executed
    sampled: Tensor  # (B,) bool: executed from the draws, or chains, not from enumeration or fallback
    calls: Tensor | None = None  # (B,) int64, how often the oracle was asked


def ask(oracle, observation: Tensor, action: Tensor) -> Tensor:
    """The oracle's answer for actions (B, S, D) int64 → (B, S) bool; ValueError unless it is that, on their device.

    >>> ask(lambda observation, action: action.sum(-1) < 3, torch.zeros(1, 4), torch.tensor([[[1, 1], [2, 1]]]))
    tensor([[ True, False]])
    """
    valid = oracle(observation, action)
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool or valid.shape != action.shape[:2]:
        got = f"{valid.dtype} {tuple(valid.shape)}" if isinstance(valid, Tensor) else type(valid).__name__
        raise ValueError(
            f"the oracle returned {got}; it must return a torch.bool tensor {tuple(action.shape[:2])} for actions "
            f"{tuple(action.shape)} (flowrl.per_action makes one of a function that judges one action)"
        )
    if valid.device != action.device:
        raise ValueError(f"the oracle returned a tensor on {valid.device}; its arguments are on {action.device}")
    return valid


def ask_apart(oracle, observation: Tensor, action: Tensor) -> Tensor:
    """`ask` an oracle that somebody else wrote: what it writes into its arguments, or its answer, harms nobody."""
    return ask(oracle, observation.clone(), action.clone()).clone()


def all_actions(sizes: tuple[int, ...], device) -> Tensor:
    """Every action in mixed-radix order, (|A|, D) int64.

    >>> all_actions((2, 2), "cpu").tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    return to_digits(torch.arange(math.prod(sizes), device=device), sizes)


def ask_all(oracle, observation: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The oracle's answer for all of A, in the order of `all_actions`: (B, |A|) bool."""
    return ask(oracle, observation, all_actions(sizes, observation.device).expand(len(observation), -1, -1))


def of_rows(asked, rows: Tensor):
    """An oracle, or fallback, for some of the states only, where it is bound to states, not just asked about them."""
    return asked.of(rows) if hasattr(asked, "of") else asked


def _pick(valid: Tensor, generator) -> Tensor:
    """Uniformly one of the valid ones in each row: (B, S) bool → (B,) int64."""
    noise = torch.rand(valid.shape, generator=generator, device=valid.device)
    return ((1 + noise) * valid).argmax(-1)  # 1 + noise: a draw of exactly 0 must not lose to an invalid one


def decide(policy, oracle, observation: Tensor, config, generator, fallback=None, before=None):
    """Draw, ask, reject, choose: one executed action for each of B states, never one that the oracle refused.

    oracle(observation (B, …), actions (B, S, D)) → bool (B, S); fallback(observation) → actions (B, D) or None. Where
    no valid action is found and the fallback says that it `accepts_nothing`, the action is NOTHING, and counts as one.
    before: what the step before left behind (`left_behind`), or None: chains may start there, where the oracle agrees.
    Returns the decision and counts: `resamples` (states that needed more than S draws), `chains` (states that chains
    took over) and their `chain_calls`, `enumerations`, `fallbacks`, `asked` (oracle calls).
    Raises NoValidActionError; ValueError where oracle or fallback answer in another form; FloatingPointError where a
    masked policy's logits are not finite.

    >>> from types import SimpleNamespace
    >>> from .policies import FactoredPolicy
    >>> policy = FactoredPolicy(torch.nn.Linear(4, 8), 8, sizes=(3, 3), config=None)
    >>> different = lambda observation, action: action[..., 0] != action[..., 1]
    >>> config = SimpleNamespace(n_draws=8, max_draws=64, enumerate_limit=9, chains=0, correction="mean")
    >>> decision, counts = decide(policy, different, torch.randn(5, 4), config, torch.Generator().manual_seed(0))
    >>> decision.action.shape, bool(different(None, decision.action).all())  # 5 states, a valid action in each
    (torch.Size([5, 2]), True)
    """
    counts = dict.fromkeys(COUNTS, 0)
    B, S = len(observation), config.n_draws
    with torch.no_grad():
        if getattr(policy, "needs_mask", False):
            mask = ask_all(oracle, observation, policy.sizes)
            counts["asked"] = mask.numel()
            found = mask.any(-1)
            mask = mask | ~found[:, None]  # something to draw, not to execute
            features = policy.features(observation, mask)
            if (features.isnan().any() | ~found.all()).item():  # one wait for the device, not two
                _refuse(observation, found, mask.shape[1], policy.sizes, fallback)
                counts["fallbacks"] = int((~found).sum())
                if features.isnan().any():  # argmax would choose any action then, forbidden ones too
                    whose = "the policy's weights are" if observation.isfinite().all() else "an observation is"
                    raise FloatingPointError(f"{whose} not finite: no action can be drawn")
            sample = policy.sample(features, 1, generator)
            ones = torch.ones(B, dtype=torch.int64, device=observation.device)
            action = sample.action[:, 0].where(found[:, None], NOTHING)
            return Decision(
                observation, mask, sample, ones.bool()[:, None], ones, ones, ones - 1, action, found,
                mask.shape[1] * ones,
            ), counts  # fmt: skip
        sample = policy.sample(policy.features(observation), S, generator)
        valid = ask(oracle, observation, sample.action)
        draws = torch.full((B,), S, device=observation.device)
        counts["asked"] = B * S
        needed = 2 if config.correction == "leave_one_out" or config.chains else 1
        n_valid, calls = valid.sum(-1), torch.zeros_like(draws)
        short = n_valid < needed
        few = bool(short.any())
        if few and config.chains:
            sample, valid, short, calls = take_over(policy, oracle, observation, sample, valid, short, config,
                                                    generator, fallback, before, counts)  # fmt: skip
        if few and (not config.chains or short.any()):
            sample, valid, n_valid, draws = redraw(policy, oracle, observation, sample, valid, n_valid, draws, needed,
                                                   config, generator, counts, short)  # fmt: skip
        chosen = _pick(valid, generator)
        action = sample.action[torch.arange(B, device=chosen.device), chosen]
        sampled, calls = valid.any(-1) if few else torch.ones_like(short), calls + draws
        if few and not sampled.all():
            action, rows, asked = action.clone(), (~sampled).nonzero().squeeze(-1), counts["asked"]
            action[rows] = without_draws(policy.sizes, of_rows(oracle, rows), observation[rows], draws[rows], config,
                                         generator, of_rows(fallback, rows), counts)  # fmt: skip
            calls[rows] += (counts["asked"] - asked) // len(rows)
        return Decision(observation, None, sample, valid, n_valid, draws, chosen, action, sampled, calls), counts


def take_over(policy, oracle, observation, sample: Sample, valid, short, config, generator, fallback, before, counts):
    """Chains instead of draws in the short states, (B,) bool, of which a valid action is known.

    Returns sample and valid with the chains' draws first, which states are still short, and the oracle calls, (B,).
    """
    rows, n = short.nonzero().squeeze(-1), config.chains
    start, known, asked = _known(policy, oracle, observation, sample, valid, rows, fallback, before)
    calls = torch.zeros_like(short, dtype=torch.int64).index_put((rows,), asked)
    rows, start = rows[known], start.at(known)
    if len(rows):

        def accepts(action: Tensor, of: Tensor | None) -> Tensor:
            these = rows if of is None else rows[of]
            return ask(of_rows(oracle, these), observation[these], action)

        run = chains.begin(policy, observation[rows], start, n, accepts, generator)
        for _ in range(config.sweeps):
            run.sweep()
        sample, valid = sample.clone(), valid.clone()
        sample.action[rows, :n] = run.action
        if sample.latent is not None:
            sample.latent[rows, :n] = run.latent
        valid[rows] = torch.arange(valid.shape[1], device=valid.device) < n
        calls[rows] += run.calls
    counts["chains"], counts["chain_calls"] = len(rows), int(calls.sum())
    counts["asked"] += counts["chain_calls"]
    return sample, valid, short.index_put((rows,), torch.zeros_like(rows, dtype=torch.bool)), calls


def _known(policy, oracle, observation, sample: Sample, valid, rows, fallback, before):
    """Valid actions of these states, (b,), to start chains from, `chains.Start`, one each, or more of what was left
    behind; whether there is any, and how often the oracle was asked, (b,) each.

    The first is a valid draw, else what the fallback names, else what was executed before or left behind, where the
    oracle accepts it. Where more was left behind, all but a draw give way to what the oracle accepts of that.
    """
    states, drawn = observation[rows], valid[rows].any(-1)
    which = valid[rows].byte().argmax(-1, keepdim=True)
    action, latent = sample.at((rows[:, None], which))
    own = drawn[:, None] & (latent is not None)
    start, known, asked = chains.Start(action, latent, own), drawn, torch.zeros_like(rows)

    def accepted(suggested: Tensor) -> Tensor:
        inside = (suggested >= 0).all(-1)  # not NOTHING
        return inside & ask(of_rows(oracle, rows), states, suggested.clamp_min(0))

    if not known.all() and (suggested := _suggested(policy.sizes, states, of_rows(fallback, rows))) is not None:
        taken = accepted(suggested[:, None])[:, 0]
        action = torch.where((taken & ~known)[:, None, None], suggested[:, None], start.action)
        start, known, asked = start._replace(action=action), known | taken, asked + 1
    if before is not None and (before.action.shape[1] > 1 or not known.all()):
        left = before.at(rows)
        taken = accepted(left.action)
        first = left.at((torch.arange(len(rows), device=rows.device)[:, None], taken.byte().argmax(-1, keepdim=True)))
        start = first.where(~known[:, None], start)
        if taken.shape[1] > 1:
            others = torch.arange(taken.shape[1], device=rows.device) > 0
            start = left.where(taken & (others | ~drawn[:, None]), start)
        known, asked = known | taken.any(-1), asked + taken.shape[1]
    return start, known, asked


def left_behind(decision: Decision, config) -> chains.Start:
    """What chains of the next step may start from: the executed action, planted, or, with `carry`, `chains` of what
    stood for draws, it first, with their latents; where these are fewer, they come again.
    """
    executed = chains.planted(decision.action[:, None])
    if not (config.carry and config.chains):
        return executed
    first = torch.nn.functional.one_hot(decision.chosen, decision.valid.shape[1])
    index = (decision.valid + 2 * first).topk(config.chains, dim=1).indices  # the chosen one, valid ones, others
    turn = torch.arange(config.chains, device=index.device) % decision.valid.sum(-1, keepdim=True).clamp_min(1)
    sample = decision.sample.at((torch.arange(len(index), device=index.device)[:, None], index.gather(1, turn)))
    drawn = decision.sampled[:, None].expand_as(index)
    return chains.Start(*sample, drawn & (sample.latent is not None)).where(drawn, executed)


def redraw(policy, oracle, observation, sample, valid, n_valid, draws, needed, config, generator, counts, short=None):
    """Double the draws of states short of valid ones until they have `needed` or the cap is met; keep S, valid first.

    short: which states, (B,) bool; by default those with fewer than `needed`. Stopping depends on counts only, so the
    valid draws stay independent draws from π'.
    """
    S, more = config.n_draws, config.n_draws
    sample, valid, n_valid, draws = sample.clone(), valid.clone(), n_valid.clone(), draws.clone()
    rows = (n_valid < needed if short is None else short).nonzero().squeeze(-1)
    counts["resamples"], made = len(rows), S  # of all these states alike
    while len(rows) and made < config.max_draws:
        more = min(2 * more, config.max_draws - made)
        made += more
        new = policy.sample(policy.features(observation[rows]), more, generator)
        new_valid = ask(of_rows(oracle, rows), observation[rows], new.action)
        counts["asked"] += new_valid.numel()
        draws[rows] += more
        n_valid[rows] += new_valid.sum(-1)
        both = torch.cat((valid[rows], new_valid), 1)
        order = torch.sort(both, dim=1, descending=True, stable=True).indices[:, :S]
        # of many new draws few are copied: what stays and what comes are picked before they are joined
        kept, each = order < S, torch.arange(len(rows), device=rows.device)[:, None]
        stays, comes = sample.at((rows[:, None], order.clamp_max(S - 1))), new.at((each, (order - S).clamp_min(0)))
        for whole, old, fresh in zip(sample, stays, comes, strict=True):
            if whole is not None:
                whole[rows] = torch.where(kept.reshape(*kept.shape, *[1] * (old.dim() - 2)), old, fresh)
        valid[rows] = both.gather(1, order)
        rows = rows[n_valid[rows] < needed]
    return sample, valid, n_valid, draws


def without_draws(sizes, oracle, observation, draws, config, generator, fallback, counts) -> Tensor:
    """Valid actions (b, D) for states without a valid draw: by enumerating A, else the environment's fallback."""
    if math.prod(sizes) <= config.enumerate_limit:
        valid = ask_all(oracle, observation, sizes)
        counts["enumerations"] += len(observation)
        counts["asked"] += valid.numel()
        action, found, tried = to_digits(_pick(valid, generator), sizes), valid.any(-1), valid.shape[1]
    else:
        action, found = _from_fallback(sizes, oracle, observation, fallback, counts)
        tried = int(draws[0])
    _refuse(observation, found, tried, sizes, fallback)
    return action.where(found[:, None], NOTHING)


def _from_fallback(sizes, oracle, observation, fallback, counts) -> tuple[Tensor, Tensor]:
    """What the fallback says, (b, D), and whether the oracle agrees, (b,) bool. ValueError for anything else."""
    counts["fallbacks"] += len(observation)
    action = _suggested(sizes, observation, fallback)
    if action is None:
        nothing = torch.full((len(observation), len(sizes)), NOTHING, dtype=torch.int64, device=observation.device)
        return nothing, torch.zeros(len(observation), dtype=torch.bool, device=observation.device)
    rows = (action >= 0).all(-1).nonzero().squeeze(-1)  # not NOTHING
    counts["asked"] += len(rows)
    accepted = torch.zeros(len(action), dtype=torch.bool, device=action.device)
    if len(rows):
        accepted[rows] = ask(of_rows(oracle, rows), observation[rows], action[rows][:, None])[:, 0]
    return action, accepted


def _suggested(sizes, observation, fallback) -> Tensor | None:
    """What the fallback says, (b, D), NOTHING where it knows nothing, or None. ValueError for anything else."""
    shape = (len(observation), len(sizes))
    action = None if fallback is None else fallback(observation)
    if action is None:
        return None
    if not isinstance(action, Tensor) or action.dtype != torch.int64 or action.shape != shape:
        got = f"{action.dtype} {tuple(action.shape)}" if isinstance(action, Tensor) else type(action).__name__
        raise ValueError(f"the fallback returned {got}; it must return a torch.int64 tensor {shape}")
    return action


def _refuse(observation: Tensor, found: Tensor, tried: int, sizes, fallback) -> None:
    """NoValidActionError unless a valid action was found everywhere, or may be missing."""
    if not found.all() and not getattr(fallback, "accepts_nothing", False):
        state = observation[(~found).nonzero()[0, 0]].flatten().tolist()
        shown = ", ".join(f"{x:.3g}" for x in state[:16]) + ", …" * (len(state) > 16)
        if tried == math.prod(sizes):
            advice = "the oracle refused all there are: is it right? If so, say what becomes of such a state"
        elif fallback is not None:
            advice = (
                "raise max_draws or enumerate_limit; what is known_valid there (a batched environment: fallback), if "
                "anything, the oracle refused; or say what becomes of a state without any"
            )
        else:
            advice = (
                "raise max_draws or enumerate_limit, give known_valid, an action or a function of the observation (a "
                "batched environment: fallback), or say what becomes of a state without any"
            )
        raise NoValidActionError(
            f"no valid action was found: {advice} (when_none_valid); {tried} actions tried, valid rate 0, in state "
            f"[{shown}]"
        )


# --------------------------------------------------------------------------- weights of ∇log π(a_j|s), j = 1..S


def at_most(decision: Decision, m: int) -> Decision:
    """The executed draw and up to m − 1 other valid ones of each state: as if no more valid draws had been made."""
    if m >= decision.valid.shape[1]:
        return decision
    first = torch.nn.functional.one_hot(decision.chosen, decision.valid.shape[1])
    index = (decision.valid + 2 * first).topk(m, dim=1).indices  # (B, m), the executed one first
    rows = torch.arange(len(index), device=index.device)[:, None]
    return decision._replace(
        sample=decision.sample.at((rows, index)),
        valid=decision.valid.gather(1, index),
        chosen=torch.zeros_like(decision.chosen),
    )


def valid_or_executed(decision: Decision) -> Tensor:
    """The drawn actions (B, S, D), the executed one for every invalid one: its weight is 0, it needs no score.

    Where that is NOTHING, zeros.
    """
    executed = decision.action.clamp_min(0).unsqueeze(1)
    return torch.where(decision.valid.unsqueeze(-1), decision.sample.action, executed)


def distinct(numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The P different actions of each state, as first drawn: their states (P,), draws (P,), and which of them each is.

    numbers: actions as `packed` has them, (B, S, P); draw j of state b is number which[b, j] of the P. A GPU's
    host waits for P.

    >>> distinct(torch.tensor([[[4], [7], [4]]]))
    (tensor([0, 0]), tensor([0, 1]), tensor([[0, 1, 0]]))
    """
    first = _equal(numbers).byte().argmax(-1)
    is_first = first == torch.arange(first.shape[1], device=first.device)
    state, draw = is_first.nonzero(as_tuple=True)
    number = is_first.flatten().cumsum(0).view_as(first) - 1
    return state, draw, number.gather(1, first)


def same_action(numbers: Tensor, valid: Tensor) -> Tensor:
    """same_jk = 1[a_j = a_k, both valid]: `packed` actions (B, S, P), valid (B, S) bool → (B, S, S) bool."""
    return _equal(numbers) & valid.unsqueeze(2) & valid.unsqueeze(1)


def _equal(numbers: Tensor) -> Tensor:
    return (numbers.unsqueeze(2) == numbers.unsqueeze(1)).all(-1)


def executed_weights(decision: Decision) -> Tensor:
    """e_j: 1 on the executed draw, 0 elsewhere: (B, S)."""
    return torch.nn.functional.one_hot(decision.chosen, decision.valid.shape[1]).float()


def shared_weights(decision: Decision, same: Tensor) -> Tensor:
    """e_j = same_j / n_a over the draws that share the executed action: the Rao-Blackwellised latent score, (B, S)."""
    shared = same[torch.arange(len(same), device=same.device), decision.chosen].float()
    return shared / shared.sum(-1, keepdim=True).clamp_min(1)


def correction_weights(executed: Tensor, valid: Tensor, n_valid: Tensor, draws: Tensor, kind: str) -> Tensor:
    """u_j such that Σ_j u_j ∇log π(a_j|s) stands for ∇log π'(a|s) of the executed a (Theorem 1).

    executed (B, S): e_j, summing to one; valid (B, S) bool; n_valid (B,): l, all valid draws, of which those marked
    in `valid` are used; draws (B,): S, all draws made.
      none            e_j
      paper           e_j − (S/l) v_j / M         Algorithm 2 as printed: S/l² where all M = l are used
      mean            e_j − v_j / M
      leave_one_out   e_j − (v_j − e_j) / (M − 1)   unbiased; 0 where M < 2
    → (B, S). ValueError for another kind.

    >>> executed, valid = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[True, True, True, False]])
    >>> correction_weights(executed, valid, torch.tensor([3]), torch.tensor([4]), "leave_one_out")
    tensor([[ 1.0000, -0.5000, -0.5000,  0.0000]])
    >>> correction_weights(executed, valid, torch.tensor([3]), torch.tensor([4]), "paper")
    tensor([[ 0.5556, -0.4444, -0.4444,  0.0000]])
    """
    v = valid.to(executed.dtype)
    m = v.sum(-1, keepdim=True)
    if kind == "none":
        return executed
    if kind == "mean":
        return executed - v / m.clamp_min(1)
    if kind == "paper":
        return executed - (draws / n_valid.clamp_min(1)).unsqueeze(-1) * v / m.clamp_min(1)
    if kind == "leave_one_out":
        return (executed - (v - executed) / (m - 1).clamp_min(1)) * (m >= 2)
    raise ValueError(f"unknown correction {kind!r}; choose one of: none, paper, mean, leave_one_out")


def bonus_weights(valid: Tensor) -> Tensor:
    """v_j / M: Σ_j weight_j ∇log π(a_j|s) estimates ∇log Z(s), Z(s) = Σ_{b∈C(s)} π(b|s): (B, S) bool → (B, S).

    >>> bonus_weights(torch.tensor([[True, True, False, False]]))
    tensor([[0.5000, 0.5000, 0.0000, 0.0000]])
    """
    v = valid.float()
    return v / v.sum(-1, keepdim=True).clamp_min(1)


def count_log_prob(same: Tensor, valid: Tensor) -> Tensor:
    """log p̂_j, p̂_j = (n_j − ½)/(l − ½), n_j of the l valid draws sharing a_j: log π'(a_j|s) from counts, (B, S)."""
    n = same.sum(-1).float()
    total = valid.sum(-1, keepdim=True).float()
    return torch.where(valid, ((n - 0.5).clamp_min(0.5) / (total - 0.5).clamp_min(0.5)).log(), 0.0)


def entropy_weights(log_prob: Tensor, valid: Tensor) -> Tensor:
    """−(log π̂_j − mean)/(M − 1) on the valid draws: Σ_j weight_j ∇log π(a_j|s) estimates ∇H(π'(·|s)), (B, S).

    ∇H(π') = −Cov_{π'}(log π', ∇log π): constants in log π (log Z among them) cancel; sample covariance, so unbiased
    where log π is exact.
    """
    return -covariance_weights(log_prob, valid)


def covariance_weights(x: Tensor, valid: Tensor) -> Tensor:
    """(x_j − mean)/(M − 1) on the valid draws: Σ_j weight_j ∇log π(a_j|s) estimates Cov_π'(x, ∇log π), (B, S).

    >>> covariance_weights(torch.tensor([[3.0, 1.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([[ 1., -1.,  0.]])
    """
    v = valid.float()
    m = v.sum(-1, keepdim=True)
    return (x - (x * v).sum(-1, keepdim=True) / m.clamp_min(1)) * v / (m - 1).clamp_min(1)
