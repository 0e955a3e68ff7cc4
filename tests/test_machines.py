"""Machines that train together, here network namespaces on a bridge: over addresses, with one that goes down."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import NamedTuple

import pytest

from tests.checkpoints import assert_same
from tests.test_torchrun import alone, arguments, home, rows, state  # noqa: F401
from tests.torchrun import command, environment

# As Debian installs a machine: its own name is an address of the loopback.
HOSTS = "127.0.0.1 localhost\n127.0.1.1 machine{}\n" + "".join(f"10.77.0.{i} machine{i}\n" for i in (1, 2, 3))
START = 'hostname machine$0; mount --bind $1 /etc/hosts; shift; exec "$@"'


class Machine(NamedTuple):
    """A network namespace with an address of its own."""

    number: int
    hosts: Path  # its /etc/hosts

    @property
    def name(self) -> str:
        return f"tinydet-{os.getpid()}-{self.number}"

    def start(self, launcher: list[str], *run: str) -> subprocess.Popen[str]:
        """Start its share of a run of torchrun."""
        words = ["ip", "netns", "exec", self.name, "unshare", "--uts", "--mount", "sh", "-c", START]
        words += [str(self.number), str(self.hosts), *command(*run, launcher=["--nproc-per-node=1", *launcher])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        # Or an agent of torch 2.13 that was there before, and one that is new, would wait for each other.
        settings = environment() | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return subprocess.Popen(words, text=True, env=settings, **pipes)  # type: ignore[call-overload]

    def kill(self) -> None:
        """End all its processes at once."""
        for pid in ip("netns", "pids", self.name).split():
            os.kill(int(pid), signal.SIGKILL)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """Three machines on a bridge."""
    if os.getuid() or not which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    folder, bridge = tmp_path_factory.mktemp("hosts"), f"td{os.getpid()}"
    made = [Machine(i, folder / f"{i}") for i in (1, 2, 3)]
    try:
        try:
            ip("link", "add", bridge, "type", "bridge")
            ip("link", "set", bridge, "up")
            for one in made:
                one.hosts.write_text(HOSTS.format(one.number))
                cable = f"{bridge}-{one.number}"
                ip("netns", "add", one.name)
                ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", one.name)
                ip("link", "set", cable, "master", bridge, "up")
                ip("-n", one.name, "link", "set", "lo", "up")
                ip("-n", one.name, "link", "set", "eth0", "up")
                ip("-n", one.name, "address", "add", f"10.77.0.{one.number}/24", "dev", "eth0")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces: {error.stderr}")
        yield made
    finally:
        for one in made:
            if Path("/run/netns", one.name).exists():
                one.kill()
            subprocess.run(["ip", "netns", "delete", one.name], stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "delete", bridge], stderr=subprocess.DEVNULL)


def wait_for(found: Callable[[], bool]) -> None:
    """Wait until something is so."""
    ends = time.monotonic() + 60
    while not found():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_run_goes_on_once_a_machine_is_back(machines: list[Machine], home: Path, alone: Path) -> None:  # noqa: F811
    launcher = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=machine1:29400", "--max-restarts=1"]
    launcher += ["--rdzv-conf=keep_alive_interval=1"]  # three seconds without a sign of life, and a machine is lost
    run, out = arguments(home, "machines", "--resume", "auto"), home / "machines"
    first, second = (one.start(launcher, *run) for one in machines[:2])
    wait_for((out / "epoch-1.pt").exists)
    machines[1].kill()
    second.communicate()
    again = machines[1].start(launcher, *run)
    said, _ = first.communicate(timeout=100)
    assert first.returncode == 0, said
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert "\nstopped: another process has ended, or cannot be reached" in said
    assert_same(state(out), state(alone))
    assert rows(out) == rows(alone)


def test_the_others_end_within_a_minute_of_a_machine(machines: list[Machine], home: Path) -> None:  # noqa: F811
    run, out = arguments(home, "down"), home / "down"
    ways = [["--nnodes=3", f"--node-rank={i}", "--master-addr=10.77.0.1", "--master-port=29401"] for i in range(3)]
    started = [one.start(way, *run) for one, way in zip(machines, ways, strict=True)]
    wait_for((out / "epoch-1.pt").exists)
    machines[2].kill()
    began = time.monotonic()
    said = [one.communicate(timeout=100)[0] for one in started]
    assert time.monotonic() - began < 60
    assert all(one.returncode for one in started)
    assert "batch     2 x 3 processes = 6, 2 steps an epoch" in said[0]
    (lost,) = re.findall("^stopped: .*", "".join(said), re.MULTILINE)
    assert lost.startswith("stopped: another process has ended, or cannot be reached")
    assert "--nnodes=" in lost
    assert lost.endswith(f"--out {out} --resume")
