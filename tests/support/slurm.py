"""A real SLURM of one controller and two nodes on this machine, for as long as a test runs.

Its credentials last 5 seconds: a job that is queued again waits for so long before it starts.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel")

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SwitchType=switch/none
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
KillWait=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000
PartitionName=short Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Say why there can be no SLURM here; empty if there can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "SLURM's daemons need root"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def slurm(root: Path) -> Iterator[dict[str, str]]:
    """Run the daemons; yields the environment in which SLURM's commands find them."""
    host = socket.gethostname().split(".")[0]
    (root / "munge").mkdir(parents=True)
    (root / "state").mkdir()
    conf = root / "slurm.conf"
    conf.write_text(_CONF.format(host=host, ports=_free_ports(3), root=root))
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    environment = os.environ | {"SLURM_CONF": str(conf), "PATH": path}
    key = root / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    (root / "munge").chmod(0o755)
    munge = [
        "munged", "--foreground", "--force", f"--socket={root}/munge/socket",
        f"--key-file={key}", f"--pid-file={root}/munge/pid", f"--log-file={root}/munge/log",
        f"--seed-file={root}/munge/seed",
    ]  # fmt: skip
    commands = [munge, ["slurmctld", "-D", "-c"]]
    commands += [["slurmd", "-N", node, "-D"] for node in ("n1", "n2")]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            log = (root / f"{command[0]}.{len(daemons)}.out").open("wb")
            daemons.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
            log.close()
            if command is munge:
                _until(lambda: (root / "munge" / "socket").exists(), root)
        _until(lambda: _idle_nodes(environment) == 2, root)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, check=False, timeout=30)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _idle_nodes(environment: dict[str, str]) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%t"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.split().count("idle")


def _until(holds, root: Path, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            logs = "\n".join(
                f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}"
                for log in sorted(root.rglob("*.*")) + sorted(root.glob("munge/log"))
                if log.suffix in (".out", ".log") or log.name == "log"
            )
            raise RuntimeError(f"SLURM did not come up:\n{logs}")
        time.sleep(0.2)
