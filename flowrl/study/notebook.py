"""Papermill that gives up on a kernel by its CPU time, not by the clock: python -m flowrl.study.notebook IN OUT …

Kernels fall silent now and then, and papermill would wait for ever; a limit in seconds of the clock kills good ones
where the machine is busy. Here a kernel is killed that has used next to no CPU for a while, or far more than any needs.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

SILENCE = 240  # seconds in which a kernel that works uses more than STIRRING
STIRRING = 0.5  # CPU seconds; one that waits uses a tenth of that
MOST = 1200  # CPU seconds of a notebook


@contextmanager
def watched(silence: float = SILENCE, most: float = MOST) -> Iterator[None]:
    """Kill the processes begun within, theirs too, once together they fall silent or use more CPU than `most`."""
    before, over = _below(), threading.Event()

    def watch() -> None:
        since, at = time.monotonic(), 0.0
        while not over.wait(min(1, silence / 10)):
            begun = _below() - before
            spent = sum(map(_cpu_s, begun))
            if not begun or spent < at or spent > at + STIRRING:
                since, at = time.monotonic(), spent
            fault = f"no CPU for {silence:g} s" if time.monotonic() - since > silence else ""
            if fault := fault or f"more than {most:g} s of CPU" * (spent > most):
                print(f"the kernel used {fault}: killed", file=sys.stderr, flush=True)
                for process in begun:
                    with suppress(psutil.Error):  # it may have ended meanwhile
                        process.kill()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _below() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _cpu_s(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:4])  # its own and its ended children's
    except psutil.Error:  # it has ended
        return 0.0


if __name__ == "__main__":
    from papermill.cli import papermill

    with watched():
        papermill()
