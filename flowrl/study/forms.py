"""Files that people write by hand: read, and checked for their form, so that a slip is answered by one line.

A form is a type (float: any number; bool is no number), a range of whole numbers, [form]: a list of such things, {key:
form}: a mapping from names, `...` standing for all that are not named, or a tuple of forms, one of which it must have.
"""

from pathlib import Path
from typing import Any

WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping of names",
         list: "a list", type(None): "nothing"}  # fmt: skip


class ConfigError(ValueError):
    """A setting, or a file of settings, that isn't as it must be."""


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises ConfigError."""
    import yaml  # here: training needs none

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(said if str(path) in said else f"{path}: {said}") from None


def check(where: str, value: Any, form: Any) -> None:
    """ConfigError naming `where`, unless the value has the form.

    >>> check("plan", {"steps": 3, "envs": ["a"]}, {"steps": int, "envs": [str]})
    >>> check("plan", {"steps": 3, "envs": ["a", 1]}, {"steps": int, "envs": [str]})
    Traceback (most recent call last):
    flowrl.study.forms.ConfigError: plan, envs, item 2 is 1; it must be a text
    """
    alternatives = form if isinstance(form, tuple) else (form,)
    form = next((one for one in alternatives if _is(value, one)), None)
    if form is None:
        raise ConfigError(f"{where} is {_brief(value)}; it must be {' or '.join(map(_words, alternatives))}")
    if isinstance(form, list):
        for i, part in enumerate(value, 1):
            check(f"{where}, item {i}", part, form[0])
    if isinstance(form, dict):
        for name, part in value.items():
            check(f"{where}, {name}", part, form.get(name, form.get(..., object)))


def _is(value: Any, form: Any) -> bool:
    """Whether it has the form as far as its own type goes."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if isinstance(form, list):
        return isinstance(value, list)
    if isinstance(value, bool):
        return form in (bool, object)
    if isinstance(form, range):
        return isinstance(value, int) and value in form
    return isinstance(value, (int, float) if form is float else form)


def _words(form: Any) -> str:
    if isinstance(form, range):
        return f"a whole number of {form.start} to {form[-1]:,}"
    form = form if isinstance(form, type) else type(form)
    return WORDS.get(form, f"a {form.__name__}")


def _brief(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"
