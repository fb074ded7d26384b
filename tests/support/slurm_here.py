"""A real Slurm on this machine: one node of two CPUs in a folder, which it leaves when the context ends. Needs root."""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import time
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

from tests.support import process

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = [name for name in PROGRAMS if not shutil.which(name)] or (
    [] if os.geteuid() == 0 else ["root"]
)

# Jobs of the partition urgent take the place of those of cheap, which get a few seconds to save and go back into the queue.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.txt
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 Port={node} CPUs=2 RealMemory=4000
PartitionName=cheap Nodes={host} Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes={host} State=UP PriorityTier=10 PreemptMode=OFF
"""


MUNGE = {
    "key-file": "key",
    "socket": "socket",
    "pid-file": "pid",
    "log-file": "log",
    "seed-file": "seed",
}


@dataclasses.dataclass(frozen=True)
class Box:
    folder: Path

    def completed(self) -> str:
        """What Slurm wrote about jobs that ended, a line each."""
        return (self.folder / "completed.txt").read_text()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Box]:
    """A controller and a node; this process and its children talk to them while the context lasts."""
    config = folder / "slurm.conf"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    ports = {"controller": process.free_port(), "node": process.free_port()}
    config.write_text(
        CONFIG.format(folder=folder, host=socket.gethostname().split(".")[0], **ports)
    )
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    munged = [
        "munged",
        "--foreground",
        "--force",
        *(f"--{name}={folder}/munge.{end}" for name, end in MUNGE.items()),
    ]
    daemons: list[subprocess.Popen] = []
    with (
        unittest.mock.patch.dict(os.environ, {"SLURM_CONF": os.fspath(config)}),
        open(folder / "daemons.log", "wb") as log,
    ):
        try:
            for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
                daemons.append(
                    subprocess.Popen(
                        command, stdout=log, stderr=log, start_new_session=True
                    )
                )
            _wait(folder)
            yield Box(folder)
        finally:
            subprocess.run(["scancel", "--full", "--user=root"], check=False)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait()


def _wait(folder: Path) -> None:
    deadline = time.time() + 60
    while (
        "idle"
        not in subprocess.run(
            ["sinfo", "--noheader", "--format=%T"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    ):
        assert time.time() < deadline, (
            f"Slurm did not start: {(folder / 'slurmctld.log').read_text()[-2000:]}"
        )
        time.sleep(0.2)
