"""The queue: every run of experiments.yaml whose record is missing or of other settings, trained one after the other.

Order: as experiments.yaml lists the experiments, seed 0 of all of one's runs before seed 1. Each run is a process of
`python -m flowrl train`, so that a stop costs no more than half a minute and the next start goes on from there.
"""

import functools
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from tqdm import tqdm

from .config import choose
from .plan import Run, experiments, runs
from .records import RecordError, read_facts

BUSY = 3  # exit status of `train` where another process makes the record


def missing(path: Path, root: Path, scale: str, only: list[str] | None = None, labels: list[str] | None = None,
            authors: Path | None = None) -> list[Run]:  # fmt: skip
    """The runs of a scale that have no record under root, or one of other settings, the most wanted first.

    path: experiments.yaml; only: some of its experiments, labels: some of their runs; default all; authors: the folder
    of the paper authors' cities. Raises ConfigError.
    """
    known = experiments(path)
    for name in only or ():
        choose("experiment", name, known)
    planned = [
        run
        for experiment in only or known
        for run in sorted(runs(path, experiment, scale, authors), key=lambda run: run.config.seed)
    ]
    for label in labels or ():
        choose("run", label, dict.fromkeys(run.label for run in planned))
    wanted = {run.path(root, scale): run for run in planned if not labels or run.label in labels}
    return [run for record, run in wanted.items() if not _is_made(run, record)]


def _is_made(run: Run, record: Path) -> bool:
    try:
        return run.config.made(read_facts(record)) and record.with_name(record.name + ".csv").exists()
    except RecordError:
        return False


def seconds(run: Run, root: Path) -> float | None:
    """How long a run is likely to take: its steps at the median speed of records of its environment and method."""
    speeds = [facts["env_steps"] / facts["wall_s"] for facts in _its_kind(run, root) if facts["wall_s"]]
    return run.config.steps / median(speeds) if speeds else None


def peak_mb(run: Run, root: Path) -> float | None:
    """The most memory in MiB that a record of its environment and method has taken; None where none says."""
    return max((facts["peak_mb"] for facts in _its_kind(run, root) if facts["peak_mb"]), default=None)


def _its_kind(run: Run, root: Path) -> list[dict]:
    """The facts of all records of a run's environment and method, of every scale."""
    found = _facts(Path(root), Path(run.config.env).stem)
    return [facts for facts in found if facts["config"]["method"] == run.config.method]


@functools.cache
def _facts(root: Path, environment: str) -> list[dict]:
    return [read_facts(record) for record in root.glob(f"*/{environment}/*/seed*.json")]


def listing(wanted: list[Run], root: Path) -> str:
    """One line a run, with an estimate in minutes, and the sum."""
    times = [seconds(run, root) for run in wanted]
    lines = [
        f"{'?' if time is None else f'{time / 60:.0f}':>6} min  {Path(run.config.env).stem:20} {run.label:24} "
        f"seed {run.config.seed}  {run.config.steps:,} steps"
        for run, time in zip(wanted, times, strict=True)
    ]
    hours = sum(time for time in times if time is not None) / 3600
    unknown = sum(time is None for time in times)
    more = f" and {unknown} runs of unknown length" * bool(unknown)
    return "\n".join([*lines, f"{len(wanted)} runs, {hours:.1f} core-hours{more}"])


def work(wanted: list[Run], out: Path, cores: int, hours: float, logs: Path, device: str = "auto") -> list[str]:
    """Train `wanted` into `out`, `cores` at a time, for at most `hours`; the failures, a line each.

    A signal, or the end of the time, stops the runs under way, each with its checkpoint saved.
    """
    end, failed, queue = time.monotonic() + 3600 * hours, [], list(wanted)
    under_way: dict[subprocess.Popen, tuple[Run, Path]] = {}
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tqdm(total=len(queue), unit=" runs", smoothing=0, disable=not queue) as bar:
            while queue or under_way:
                while queue and len(under_way) < cores:
                    run = queue.pop(0)
                    if _is_made(run, run.path(out.parent, out.name)):  # by another process, since it was listed
                        bar.update()
                    else:
                        under_way |= dict([_start(run, out, logs, device)])
                for process in [process for process in under_way if process.poll() is not None]:
                    run, log = under_way.pop(process)
                    bar.update()
                    if process.returncode not in (0, BUSY):
                        failed.append(f"{Path(run.config.env).stem} {run.label} seed {run.config.seed}: see {log}")
                if time.monotonic() > end:
                    raise KeyboardInterrupt
                time.sleep(0.2)
    except KeyboardInterrupt:
        for process in under_way:
            process.terminate()
    finally:
        for process in under_way:
            process.wait()
        signal.signal(signal.SIGTERM, handler)
    return failed


def _start(run: Run, out: Path, logs: Path, device: str) -> tuple[subprocess.Popen, tuple[Run, Path]]:
    log = run.path(logs, out.name).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "flowrl", "train", *run.options(), "--out", out, "--device", device, "--force"]
    with open(log, "w") as file:
        print(shlex.join(map(str, command)), file=file, flush=True)
        # a session of its own: Ctrl-C in a terminal reaches the queue alone, which then stops its runs
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    return process, (run, log)
