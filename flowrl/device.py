"""The device to compute on, and how the CPU is used for matrices as small as these."""

import ctypes
from contextlib import suppress

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def make_device(name: str) -> torch.device:
    """`auto`: a GPU where there is one, else the CPU. Raises ValueError for a device that isn't there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        there = ["auto", "cpu"] + (["cuda"] if torch.cuda.is_available() else [])
        raise ValueError(f"device {name!r} is not there; choose one of: {', '.join(there)}") from None
    return device


def one_thread() -> None:
    """Make torch use one thread, and glibc keep freed memory: returning it each time costs a sixth of the speed."""
    torch.set_num_threads(1)
    with suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
