"""What claims are about: numbers of a training run, each with its words and the way it is written out."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from .records import gain, score


def plain(digits: int) -> Callable[[float], str]:
    return lambda value: _sign(f"{value:,.{digits}f}")


def percent(value: float) -> str:
    return f"{significant(100 * value)} %"


def significant(value: float, digits: int = 2) -> str:
    """So many digits: 1.7, 85, 2.0·10¹³, 0.12."""
    if not np.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return _sign(f"{mantissa}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}")
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(rounded))))) if value else 0
    return _sign(f"{rounded:,.{decimals}f}")


def _sign(text: str) -> str:
    """A minus sign where there is one, and none before a zero."""
    return text.lstrip("-") if not re.search("[1-9]", text) else text.replace("-", "−")


class Quantity(NamedTuple):
    """A number a run, from the record's facts and curve."""

    words: str
    of: Callable[[dict, pd.DataFrame], float | None]
    show: Callable[[float], str]
    digits: int | None = None  # of a difference; None: two significant digits


def _above_stay(facts: dict, curve: pd.DataFrame) -> float | None:
    known = facts["reference"] or {}
    if "go_and_stay" not in known:
        return None
    error = np.hypot(facts["final_return_sem"], known.get("go_and_stay_sem", 0))
    return (facts["final_return_mean"] - known["go_and_stay"]) / error


def _trained(column: str, statistic: str) -> Callable[[dict, pd.DataFrame], float]:
    """A statistic of a column over all evaluations but the first, before which nothing was drawn."""
    return lambda facts, curve: float(getattr(curve[column].iloc[1:], statistic)())


def _last(column: str) -> Callable[[dict, pd.DataFrame], float]:
    return lambda facts, curve: float(curve[column].iloc[-1])


def _fact(name: str) -> Callable[[dict, pd.DataFrame], float | None]:
    return lambda facts, curve: facts[name]


def _chained(facts: dict, curve: pd.DataFrame) -> float:
    return float(curve["chains"].iloc[-1]) / facts["env_steps"]


def _norm(of: str, which: str) -> Quantity:
    words = {"min": "least", "max": "greatest"}[which]
    return Quantity(f"{of}'s gradient norm, {words} in training", _trained(f"grad_norm_{of}", which), significant)


QUANTITIES = {
    "score": Quantity("score", lambda facts, curve: score(facts), plain(2), 3),
    "gain": Quantity("plateau gain", lambda facts, curve: gain(facts), plain(2), 2),
    "return": Quantity("return by episodes", _fact("final_return_mean"), plain(1), 1),
    "exact_return": Quantity("exact return", _fact("final_exact_return"), plain(1), 1),
    "mean_return": Quantity("return, mean over training", _trained("eval_return_mean", "mean"), plain(1), 1),
    "untrained_return": Quantity("return before training", lambda facts, curve: curve.eval_return_mean[0], plain(0)),
    "above_stay": Quantity("return above go-and-stay, in standard errors", _above_stay, plain(1)),
    "violations": Quantity("violations", _fact("violations"), plain(0)),
    "invalid_share": Quantity("invalid share of what is executed between the last two evaluations",
                              lambda facts, curve: 1 - _last("valid_rate")(facts, curve), percent),
    "invalid_in_training": Quantity("invalid share of what is executed in training",
                                    lambda facts, curve: 1 - _trained("valid_rate", "mean")(facts, curve), percent),
    "enumerated_share": Quantity("share of the final policy's steps by enumeration or fallback",
                                 _fact("final_enumerated_share"), percent),
    "enumerated_in_training": Quantity("share of training's steps by enumeration or fallback",
                                       _fact("train_enumerated_share"), percent),
    "valid_rate": Quantity("valid rate at the end", _last("valid_rate"), plain(2), 2),
    "valid_rate_least": Quantity("valid rate, least in training", _trained("valid_rate", "min"), significant),
    "actor_norm": Quantity("actor's gradient norm, median of the last 20 evaluations",
                           lambda facts, curve: float(curve["grad_norm_actor"].tail(20).median()), significant),
    "actor_norm_most": _norm("actor", "max"),
    "critic_norm_least": _norm("critic", "min"),
    "critic_norm_most": _norm("critic", "max"),
    "calls_median": Quantity("oracle calls a decision at the end, median", _fact("final_calls_median"), plain(0)),
    "calls_99": Quantity("oracle calls a decision at the end, 99th percentile", _fact("final_calls_99"), plain(0)),
    "chained_in_training": Quantity("share of training's steps in which chains stood in", _chained, percent),
    "fallback_in_training": Quantity("share of training's steps by the fallback", _fact("train_enumerated_share"),
                                     percent),
    "oracle_calls": Quantity("oracle calls a step",
                             lambda facts, curve: _last("oracle_calls")(facts, curve) / facts["env_steps"],
                             significant),
}  # fmt: skip
