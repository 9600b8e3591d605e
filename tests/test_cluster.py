"""A part of the DAG through Slurm, on a cluster of one node that is started here: records and figures are those of a
local run.

Needs slurmctld, slurmd and munged (Debian: slurm-wlm, munge), root to start them, no cluster here yet, and the extra
`cluster`.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from problems import project_without_records

from flowrl.study import plan
from flowrl.study.records import ROOT

pytestmark = pytest.mark.cluster

NOTEBOOK = "07_partial"
TARGETS = [
    f"build/smoke/notebooks/{NOTEBOOK}.ipynb",  # and the trainings that it draws
    "data/runs/smoke/Pistonball-v1-cstr/wol-ddpg/seed0.json",
]
PARTITION = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())["default-resources"]["slurm_partition"]
CONF = Path("/etc/slurm/slurm.conf")  # where jobs look for it
CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=3500 State=UNKNOWN
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def daemon(name):
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert path, f"{name} is not here; Debian has it in slurm-wlm and munge"
    return path


class Slurm:
    """One node; folder: where all of it lies."""

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self):
        folder = self.folder
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        where = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
        where |= {"log-file": folder / "munged.log", "seed-file": folder / "munge.seed"}
        subprocess.run([daemon("munged"), "--force", *(f"--{k}={v}" for k, v in where.items())], check=True)
        host = socket.gethostname().partition(".")[0]
        text = CONFIG.format(folder=folder, host=host, ports=free_ports(2), cores=os.cpu_count(), partition=PARTITION)
        (folder / "slurm.conf").write_text(text)
        CONF.parent.mkdir(exist_ok=True)
        CONF.symlink_to(folder / "slurm.conf")  # FileExistsError where there is a cluster already
        self.start("slurmctld")
        self.start("slurmd")

    def start(self, name):
        subprocess.run([daemon(name)], check=True)

    def pid(self, name) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def jobs(self) -> list[str]:
        """Running jobs by number."""
        return subprocess.run(["squeue", "-h", "-tR", "-o%i"], capture_output=True, text=True).stdout.split()

    def stop(self):
        if CONF.is_symlink():
            CONF.unlink()
        for name in ("slurmd", "slurmctld", "munged"):
            with contextlib.suppress(OSError):  # it never began
                os.kill(self.pid(name), signal.SIGTERM)


@pytest.fixture
def slurm(tmp_path_factory):
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.stop()


def snakemake(folder, *options):
    command = [sys.executable, "-m", "snakemake", *TARGETS, *options, "--config", "scale=smoke"]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # the project's own modules
    return subprocess.Popen(command, cwd=folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def figures(folder) -> dict[str, bytes]:
    """Pictures and tables as they are."""
    return {path.name: path.read_bytes() for path in (folder / "build/smoke/figures").iterdir()}


def curves(folder) -> dict[str, pd.DataFrame]:
    """Of all records, but for what tells the time."""
    runs = folder / "data/runs/smoke"
    return {
        str(path.relative_to(runs)): pd.read_csv(path).drop(columns=["wall_s", "train_s"])
        for path in runs.rglob("seed*.csv")
    }


def planned() -> set[str]:
    """The curves of the notebook's trainings and Pistonball's, as experiments.yaml lists them."""
    path = ROOT / "experiments.yaml"
    drawn = [name for name, facts in plan.experiments(path).items() if facts["notebook"] == NOTEBOOK]
    runs = [run.path(Path(), "smoke") for name in drawn for run in plan.runs(path, name, "smoke")]
    return {f"{Path(*run.parts[1:])}.csv" for run in runs} | {"Pistonball-v1-cstr/wol-ddpg/seed0.csv"}


def test_what_is_made_through_slurm_is_that_of_a_local_run(tmp_path, slurm):
    """A job is killed and the controller is, too, on the way."""
    local, remote = (project_without_records(tmp_path / name) for name in ("local", "remote"))
    run = snakemake(remote, "--profile", "profiles/slurm")
    try:
        until = time.monotonic() + 300
        while not (slurm.jobs() and list(remote.glob("data/runs/smoke/*/*/seed0.pt"))):
            assert run.poll() is None, run.stdout.read()
            assert time.monotonic() < until, "no job began within five minutes"
            time.sleep(0.2)
        subprocess.run(["scancel", "--signal=KILL", "--full", slurm.jobs()[0]], check=True)
        os.kill(slurm.pid("slurmctld"), signal.SIGKILL)
        time.sleep(3)
        slurm.start("slurmctld")
        said = run.communicate()[0]
        assert run.returncode == 0, said
    finally:
        run.kill()
    alone = snakemake(local, "--cores", "2")
    said = alone.communicate()[0]
    assert alone.returncode == 0, said
    expected, found = curves(local), curves(remote)
    assert expected.keys() == found.keys() == planned()
    for name, curve in expected.items():
        pd.testing.assert_frame_equal(found[name], curve, check_exact=True)
    names = ("fig6", "figA3", "figB_joint", "figB_line")
    assert {f"{name}{suffix}" for name in names for suffix in (".pdf", ".png", ".csv")} <= figures(local).keys()
    assert figures(remote) == figures(local)
