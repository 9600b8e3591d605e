"""The command line: python -m flowrl train | queue | tune | optimum | evaluate | generate | city | import-city | list |
claims.

Units everywhere; bad input is answered by one line and exit status 2.
"""

import argparse
import inspect
import io
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

from . import envs
from .envs import authors, maps
from .fit import STRANGERS, fit
from .rejection import NoValidActionError
from .study import config, evaluation, plan, queue, records, runs
from .truth import search


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    return key, value


def _count(text: str) -> int:
    try:
        number = int(float(text)) if "e" in text.lower() else int(text)
    except (ValueError, OverflowError):
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number ≥ 0")
    return number


def _real(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number ≥ 0")
    return number


class _Parser(argparse.ArgumentParser):
    """Errors in one line, like all others."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n")


def command_line() -> argparse.ArgumentParser:
    parser = _Parser("flowrl", description="IAR-A2C: flow policies under an oracle's constraints.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    train = commands.add_parser(
        "train",
        help="train one policy, write its record",
        description="Train one policy and write DIR/<environment>/<label>/seed<k>.csv and .json. Interrupted runs "
        "go on from their checkpoint (.pt) when the same command is given again.",
    )
    train.add_argument("--env", required=True, help="environment (see `list`), or the path of a city's .json file")
    train.add_argument("--method", required=True, help=f"one of: {', '.join(config.METHODS)}")
    train.add_argument("--seed", type=_count, default=0, metavar="K", help="seed of every generator (default 0)")
    train.add_argument("--steps", type=_count, default=config.TrainConfig.steps, metavar="N",
                       help="environment steps, over all parallel environments (default %(default)s)")  # fmt: skip
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for records")
    train.add_argument("--name", metavar="LABEL", help="label of the run (default: the method)")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto: a GPU where there is one)")
    train.add_argument("--set", type=_pair, action="append", default=[], metavar="KEY=VALUE", dest="settings",
                       help="override one setting; keys, units and defaults: `list --settings`")  # fmt: skip
    train.add_argument("--force", action="store_true", help="overwrite a finished record")
    train.add_argument("--wait", action="store_true", help="wait where another process is making the record")
    train.add_argument("--quiet", action="store_true", help="no progress bar")

    queue = commands.add_parser(
        "queue",
        help="train what experiments.yaml lacks",
        description="Train every run of a scale whose record is missing or of other settings, the most wanted first. "
        "Stopped, it goes on from the checkpoints when the same command is given again.",
    )
    queue.add_argument("--scale", default="paper", help=f"one of: {', '.join(plan.SCALES)} (default %(default)s)")
    queue.add_argument("--only", nargs="+", metavar="EXPERIMENT", help="some experiments (see `list`)")
    queue.add_argument("--runs", nargs="+", metavar="LABEL", help="some runs, by label")
    queue.add_argument("--cores", type=_count, default=1, metavar="N", help="runs at a time (default 1)")
    queue.add_argument("--hours", type=float, default=float("inf"), metavar="H", help="stop after so long")
    queue.add_argument("--data", type=Path, default=Path("data/runs"), metavar="DIR", help="default %(default)s")
    queue.add_argument("--authors", type=Path, metavar="DIR", help="the paper authors' cities (default authors)")
    queue.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    queue.add_argument("--list", action="store_true", help="only say what is missing and how long it is likely to take")

    tune = commands.add_parser(
        "tune",
        help="random search over a method's settings",
        description="Train the trials of tuning.yaml that data/tuning/METHOD.csv lacks, add their rows, and print the "
        "trials by mean exact score. Stopped, it goes on when the same command is given again.",
    )
    tune.add_argument("method", metavar="METHOD", help="one that tuning.yaml has ranges for")
    tune.add_argument("--trials", type=_count, metavar="N", help="the first N only (default: tuning.yaml's; 0: print)")
    tune.add_argument("--cores", type=_count, default=1, metavar="N", help="runs at a time (default 1)")
    tune.add_argument("--hours", type=float, default=float("inf"), metavar="H", help="stop after so long")

    optimum = commands.add_parser(
        "optimum",
        help="exact expected returns of an environment",
        description="Expected undiscounted return of an episode over the start distribution, by dynamic programming, "
        "which may take minutes, or hours, and tells its bounds meanwhile; for the largest cities the best found by "
        "local search.",
    )
    optimum.add_argument(
        "env", metavar="ENV", help="ERA or Partial environment, a line, or the path of a city's .json file"
    )
    optimum.add_argument("--json", action="store_true", help="one JSON object")

    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate a trained policy",
        description="Evaluate the weights beside a record (its .pt file): mean return of whole episodes, exact return.",
    )
    evaluate.add_argument("record", type=Path, metavar="RECORD_OR_CHECKPOINT", help=".json, .csv or .pt of a run")
    evaluate.add_argument("--episodes", type=_count, metavar="N", help="episodes (default: as in training)")
    evaluate.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    evaluate.add_argument("--json", action="store_true", help="one JSON object")

    generate = commands.add_parser(
        "generate", help="make a random city", description="Write a random city as a JSON file to train on."
    )
    generate.add_argument("--districts", type=_count, required=True, metavar="K", help="number of districts")
    generate.add_argument("--resources", type=_count, default=3, metavar="D", help="number of resources (default 3)")
    generate.add_argument("--seed", type=_count, default=0, metavar="K", help="seed of the generator (default 0)")
    generate.add_argument("--max-hops", type=_count, default=3, metavar="H", help="hops a move may take (default 3)")
    generate.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .json file")
    generate.add_argument("--force", action="store_true", help="overwrite a file")

    city = commands.add_parser(
        "city",
        help="make a city of a road network",
        description="Read an edge list (CSV: from, to, cost), GraphML, node-link JSON, a TNTP network or an OR-library "
        "p-median file and write it as a city to train on. Emergencies follow the nodes' demand and pay 1 where they "
        "are served, -1 where not.",
    )
    city.add_argument("file", type=Path, metavar="INPUT", help="the network")
    city.add_argument("--out", type=Path, required=True, metavar="CITY", help="the .json file to write")
    city.add_argument("--format", choices=maps.FORMATS, help="one of: %(choices)s (default: told from the file)")
    city.add_argument("--demand", metavar="FILE|NAME", help="a CSV file (node, demand), a TNTP trip table, or a node "
                      "attribute (default: demand or population, else the same everywhere)")  # fmt: skip
    city.add_argument("--cost", metavar="NAME", help="the edge attribute or column that says what a road costs")
    city.add_argument("--road-cost", type=_real, default=0.1, metavar="C",
                      help="what a road costs on average, as costs are scaled (default %(default)s)")  # fmt: skip
    city.add_argument("--resources", type=_count, metavar="D", help="number of resources (default 3, or p)")
    city.add_argument("--max-hops", type=_count, default=3, metavar="H", help="hops a move may take (default 3)")
    city.add_argument("--proximity", type=_count, nargs=3, action="append", default=[], metavar=("R", "R'", "HOPS"),
                      help="two resources that must end a step within so many hops; repeatable")  # fmt: skip
    city.add_argument("--epsilon", type=_real, default=0.05, metavar="E", help="share of emergencies that strike "
                      "uniformly (default %(default)s)")  # fmt: skip
    city.add_argument("--horizon", type=_count, default=100, metavar="T", help="steps of an episode (default 100)")
    city.add_argument("--force", action="store_true", help="overwrite a file")

    imported = commands.add_parser(
        "import-city",
        help="read a city of the paper's authors",
        description="Read an instance file of the paper authors' public repository (seqssg_v2.json, …) and write the "
        "same city as a JSON file to train on. Their files stay theirs: neither is part of this project.",
    )
    imported.add_argument("file", type=Path, metavar="FILE", help="the authors' .json file")
    imported.add_argument("--out", type=Path, required=True, metavar="CITY", help="the .json file to write")
    imported.add_argument("--force", action="store_true", help="overwrite a file")

    listing = commands.add_parser("list", help="environments, methods, experiments")
    listing.add_argument("--settings", action="store_true", help="every setting: type or choices, default, meaning")

    claims = commands.add_parser(
        "claims",
        help="every claim's verdict, from the records",
        description="Write docs/claims.md, and the numbers that documents quote, from claims.yaml and the records.",
    )
    claims.add_argument("--check", action="store_true", help="write nothing; exit status 1 where one is out of date")
    return parser


def _train(args) -> None:
    for key in ("seed", "steps"):
        if key in dict(args.settings):
            raise config.ConfigError(f"--set {key}=… has an option of its own: --{key}")
    overrides = dict(args.settings) | {"seed": args.seed, "steps": args.steps}
    cfg = config.make_config(args.env, args.method, overrides)
    facts = runs.train(cfg, args.out, args.name, args.device, args.force, not args.quiet, args.wait)
    path = records.record_path(args.out, args.env, args.name or args.method, args.seed)
    score = "" if facts["final_normalised"] is None else f", normalised score {facts['final_normalised']:.3f}"
    print(
        f"{path}.json: return {facts['final_return_mean']:.2f} ± {facts['final_return_sem']:.2f} over "
        f"{cfg.final_episodes} episodes{score}, {facts['violations']} violations"
    )


def _queue(args) -> None:
    data = records.ROOT / args.data
    wanted = queue.missing(records.EXPERIMENTS, data, args.scale, args.only, args.runs, args.authors)
    if args.list:
        print(queue.listing(wanted, data))
        return
    for run in plan.without_city(wanted):
        raise plan.missing_city(run)
    if args.cores < 1:
        raise config.ConfigError("--cores is 0; it must be at least 1")
    logs = records.ROOT / "build" / "logs"
    failed = queue.work(wanted, data / args.scale, args.cores, args.hours, logs, args.device)
    if failed:
        raise records.RecordError(f"{len(failed)} runs failed: {'; '.join(failed)}")


def _tune(args) -> None:
    from .study import tuning  # here: it imports pandas

    if args.cores < 1:
        raise config.ConfigError("--cores is 0; it must be at least 1")
    space, tables = tuning.read_space(), records.ROOT / "data" / "tuning"
    failed = tuning.tune(
        args.method, tables, records.ROOT / "build" / "tuning", args.cores, args.hours, args.trials, space
    )
    print(tuning.ranking(tuning.read_table(args.method, tables), space, args.method).head(10).to_string())
    if failed:
        raise records.RecordError(f"{len(failed)} runs failed: {'; '.join(failed)}")


def _optimum(args) -> None:
    found = evaluation.reference(envs.make_batched(args.env, 1), patient=True)
    if found is None:
        raise config.ConfigError(f"no optimum is known for {args.env}; it is for cities, hidden incidents and lines")
    if args.json:
        print(json.dumps(found))
        return
    units = {"valid_fraction": "share of all actions"}
    for key, value in found.items():
        shown = f"{value:10.4f}" if isinstance(value, float) else f"{value or 'unknown':>10}"
        print(f"{key:16} {shown}  {units.get(key, 'expected return of an episode')}")


def _evaluate(args) -> None:
    if args.episodes == 0:
        raise config.ConfigError("--episodes is 0; it must be at least 1")
    found = runs.evaluate_checkpoint(args.record, args.episodes, args.device)
    print(json.dumps(found) if args.json else "\n".join(f"{key:15} {value}" for key, value in found.items()))


def _generate(args) -> None:
    _check_out(args)
    pair: dict[str, Any] = {} if args.resources > 1 else {"proximity": ()}  # one resource has no other to be near to
    city = envs.city.generate(args.districts, args.resources, args.seed, max_hops=args.max_hops, **pair)
    _write(city, args.out)


def _city(args) -> None:
    _check_out(args)
    names = ("resources", "max_hops", "proximity", "road_cost", "epsilon", "horizon")
    city, notes = maps.read(
        args.file, args.format, args.demand, args.cost, **{name: getattr(args, name) for name in names}
    )
    _write(city, args.out)
    for note in notes:
        print(f"  {note}")


def _import_city(args) -> None:
    _check_out(args)
    _write(authors.read(args.file), args.out)


def _check_out(args) -> None:
    if args.out.suffix != ".json":
        raise config.ConfigError(f"--out is {args.out}; it must end in .json, as environments are told apart by it")
    if args.out.exists() and not args.force:
        raise config.ConfigError(f"{args.out} is there already; --force overwrites it")


def _write(city: envs.City, path: Path) -> None:
    """Write a city and say what it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    city.to_json(path)
    said = f"{path}: {city.districts} districts, {city.resources} resources, {city.allocations:,} actions"
    if city.countable:
        said += f", {100 * search.valid_fraction(city):.3g} % of them valid at the start"
    print(said)


def _list(args) -> None:
    if args.settings:
        _list_settings()
        return
    print("environments:", *envs.names(), sep="\n  ")
    print("  (or the path of a city's .json file)")
    print("methods:")
    for name, (doc, _) in config.DESCRIBED_METHODS.items():
        print(f"  {name:15} {doc}")
    path = records.ROOT / "experiments.yaml"
    if path.exists():
        print("experiments:")
        for name, experiment in plan.experiments(path).items():
            print(f"  {name:15} {experiment['title']}")


def _list_settings() -> None:
    """Every setting, its default, and where `fit` or a method has another one."""
    fits = STRANGERS | {"steps": inspect.signature(fit).parameters["steps"].default}
    print(f"{'setting':20} {'default':>13} {'in fit':>7}  {'values':48} meaning")
    for name, kind, default, doc in config.describe_settings():
        print(f"{name:20} {default!s:>13} {fits.get(name, '')!s:>7}  {kind:48} {doc}")
    print(
        "in fit: flowrl.fit's; all but steps in gymnasium environments only. There entropy falls as 1 / log |A| beyond"
    )
    print("a thousand actions, and the method is iar-a2c-gumbel beyond a million, with chains 8 given known_valid.")
    print("Methods' own, over the default; in gymnasium environments what fit sets, above, holds instead:")
    for method, own in config.METHODS.items():
        print(f"  {method:17}", *(f"{name}={value}" for name, value in own.items()))


def _claims(args) -> int:
    from .study import report  # here: it imports matplotlib, which no other command needs

    documents = report.generate()
    stale = report.stale(documents)
    for path in () if args.check else documents:
        path.parent.mkdir(exist_ok=True)
        path.write_text(documents[path])
    print(f"{'out of date' if args.check else 'written'}: {', '.join(stale)}" if stale else "all up to date")
    return int(args.check and bool(stale))


def main(arguments: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that can't show ± must not cost a run
    parser = command_line()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return 2
    args = parser.parse_args(arguments)
    command = {
        "train": _train, "queue": _queue, "tune": _tune, "optimum": _optimum, "evaluate": _evaluate,
        "generate": _generate, "city": _city, "import-city": _import_city, "list": _list, "claims": _claims,
    }  # fmt: skip
    try:
        status = command[args.command](args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # its reader, `head` say, has seen enough; what is left must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except runs.Interrupted as stopped:
        print(f"flowrl: {stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("flowrl: stopped; the same command goes on from the last checkpoint, if there is one", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"flowrl: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except records.BusyError as error:
        print(f"flowrl: {error}", file=sys.stderr)
        return queue.BUSY
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error) and not isinstance(error, NoValidActionError):
            raise
        print(f"flowrl: {' '.join(str(error).split()) or 'not enough memory'}", file=sys.stderr)
        return 2
    except (ValueError, FloatingPointError) as error:
        print(f"flowrl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
