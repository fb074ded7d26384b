"""A real Slurm on this machine: one node of two CPUs, all of it in a folder. Needs root."""

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

# Jobs of the partition urgent preempt those of cheap, which get a few seconds to save and
# go back into the queue.
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
PartitionName=cheap Nodes={host} Default=YES State=UP PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=60
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
    """A controller and a node, which end with the context.

    This process and its children use them until then.
    """
    config = folder / "slurm.conf"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    ports = {"controller": process.free_port(), "node": process.free_port()}
    host, _, _ = socket.gethostname().partition(".")
    config.write_text(CONFIG.format(folder=folder, host=host, **ports))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
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
                daemon = subprocess.Popen(
                    command, stdout=log, stderr=log, start_new_session=True
                )
                daemons.append(daemon)
            _wait(folder)
            yield Box(folder)
        finally:
            subprocess.run(["scancel", "--full", "--user=root"], check=False)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait()


def _wait(folder: Path) -> None:
    deadline = time.time() + 60
    while "idle" not in _node_state():
        log = folder / "slurmctld.log"
        assert time.time() < deadline, f"Slurm did not start: {log.read_text()[-2000:]}"
        time.sleep(0.2)


def _node_state() -> str:
    command = ["sinfo", "--noheader", "--format=%T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout
