"""A run on several hosts, which are network namespaces of this machine with addresses and names of their own.

``python -m tests.hosts`` (as root, with vLLM in the environment). First two trainer hosts under torchrun, then a single
one under ``fastgrpo train``, sample with servers on two further hosts. To itself every host's own name means 127.0.1.1,
as Debian writes it into ``/etc/hosts``. On the way one server's processes are killed and started again, then the other
one's host loses its cable and gets it back. The exit code is 1 if a run does not end well.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastgrpo.json_lines import JsonLines
from tests import tiny_recipe
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
NAMES = Path("/etc/netns")  # `ip netns exec` shows a host the files of its folder here in the place of those in /etc
SWITCH = "fastgrpo-switch"
LIMIT_S = 400.0
KEY = "a key of the hosts"
SETTINGS = (
    "--steps", "4000", "--rollout.engine", "vllm", "--rollout.max_staleness", "1", "--objective.correction", "truncate",
    "--data.held_out", "", "--checkpoint.every_steps", "0", "--deadline.stall_s", "15", "--deadline.sync_s", "15",
)  # fmt: skip


class Host:
    """A namespace with one cable, a name and what runs in it."""

    def __init__(self, number: int, name: str, folder: Path) -> None:
        # Of two hosts gloo lets the one with the higher address connect to the other's, which must not be 127.0.1.1.
        self.name, self.address = f"fastgrpo-{name}", f"192.168.77.{number}"
        self.log, self.processes = folder / f"{name}.log", []

    def plug_in(self, hosts: "list[Host]") -> None:
        cable = f"host{self.address.rpartition('.')[2]}"
        _ip("netns", "add", self.name)
        _ip("link", "add", "eth0", "netns", self.name, "type", "veth", "peer", "name", cable, "netns", SWITCH)
        _ip("-n", SWITCH, "link", "set", cable, "master", "bridge", "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            _ip("-n", self.name, "link", "set", interface, "up")
        (NAMES / self.name).mkdir(parents=True)
        known = [f"{h.address} {h.name}" for h in hosts if h is not self]
        lines = ["127.0.0.1 localhost", f"127.0.1.1 {self.name}", *known]
        (NAMES / self.name / "hosts").write_text("\n".join(lines) + "\n")

    def set_cable(self, is_plugged: bool) -> None:
        _ip("-n", self.name, "link", "set", "eth0", "up" if is_plugged else "down")

    def start(self, *command: str) -> None:
        """Starts a command of this checkout in a session of its own."""
        inside = ["ip", "netns", "exec", self.name, "unshare", "--uts", "--", "sh", "-c"]
        inside += ['hostname "$0" && exec "$@"', self.name, *command]
        path = f"{ROOT}:{ROOT / 'kernels'}"
        environment = {**os.environ, "VLLM_API_KEY": KEY, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                inside, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.processes.append(started)

    def kill(self) -> None:
        """All that runs here."""
        inside = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split()
        for pid in map(int, inside):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()
        self.processes.clear()

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@contextlib.contextmanager
def network(hosts: list[Host]) -> Iterator[None]:
    """The hosts on a switch; in the end all that runs on them is killed."""
    _remove(hosts)  # what a run that was killed has left
    _ip("netns", "add", SWITCH)
    try:
        _ip("-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        _ip("-n", SWITCH, "link", "set", "bridge", "up")
        for host in hosts:
            host.plug_in(hosts)
        yield
    finally:
        _remove(hosts)


def _remove(hosts: list[Host]) -> None:
    for host in hosts:
        host.kill()
        shutil.rmtree(NAMES / host.name, ignore_errors=True)
    for name in [SWITCH, *(h.name for h in hosts)]:
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def serve(host: Host, runs: Path) -> None:
    words = ["fastgrpo", "serve", str(TINY), "--host", host.address, "--runs_dir", str(runs)]
    host.start(sys.executable, "-m", *words, "--rollout.kv_cache_gib", "0.25")


def train(trainers: list[Host], servers: list[Host], runs: Path) -> None:
    """Starts the trainers: under torchrun if there are several."""
    run = [str(TINY), "--runs_dir", str(runs), *SETTINGS]
    run += ["--rollout.servers", *(f"http://{s.address}:8000" for s in servers)]
    if len(trainers) == 1:
        trainers[0].start(sys.executable, "-m", "fastgrpo", "train", *run[:1], "--ranks", "1", *run[1:])
        return
    for number, host in enumerate(trainers):
        torchrun = ["torch.distributed.run", "--nnodes", str(len(trainers)), "--nproc_per_node", "1"]
        torchrun += ["--rdzv_backend", "c10d", "--rdzv_id", "tiny", "--rdzv_endpoint", f"{trainers[0].address}:29400"]
        torchrun += ["--rdzv_conf", f"is_host={str(number == 0).lower()}", "--local_addr", host.address]
        host.start("env", "GLOO_SOCKET_IFNAME=eth0", sys.executable, "-m", *torchrun, "-m", "fastgrpo.train", *run)


def exercise(num_trainers: int, folder: Path) -> None:
    """One run. Raises AssertionError with what was printed where it does not go as it must."""
    trainers = [Host(1 + i, f"trainer{i}", folder) for i in range(num_trainers)]
    servers = [Host(11 + i, f"server{i}", folder) for i in range(2)]
    runs = folder / "runs"
    tiny_recipe.prepare(tiny_recipe.config, runs / "tiny" / "base", print)
    first, second = servers

    def wait(until: Callable[[], bool], what: str, *, may_end: bool = False) -> None:
        end = time.monotonic() + LIMIT_S
        while not until():
            ended = [h for h in trainers if any(p.poll() is not None for p in h.processes)]
            if (ended and not may_end) or time.monotonic() > end:
                raise AssertionError(f"{what}: {ended[0].name + ' ended' if ended else 'it did not come'}\n{told()}")
            time.sleep(0.1)
        print(f"{what}: step {last_step()}", flush=True)

    def told() -> str:
        return "\n".join(f"--- {h.name}\n{h.printed[-4000:]}" for h in [*trainers, *servers])

    def last_step() -> int:
        return max((r["step"] for r in JsonLines(runs / "tiny" / "metrics.jsonl").read()), default=0)

    def told_of(server: Host, what: str) -> int:
        return trainers[0].printed.count(f"server http://{server.address}:8000 {what}")

    def steps_after(count: int) -> Callable[[], bool]:
        goal = last_step() + count
        return lambda: last_step() >= goal

    with network([*trainers, *servers]):
        for server in servers:
            serve(server, runs)
        train(trainers, servers, runs)
        wait(lambda: all(told_of(s, "is there") for s in servers), "both servers are there")
        wait(steps_after(4), f"{num_trainers} trainer hosts and 2 servers train")
        for server, harm, mend in (
            (first, first.kill, lambda: serve(first, runs)),
            (second, lambda: second.set_cable(False), lambda: second.set_cable(True)),
        ):
            lost, come = told_of(server, "was lost"), told_of(server, "is there")
            harm()
            wait(lambda s=server, n=lost: told_of(s, "was lost") > n, f"{server.name} was harmed and is missed")
            wait(steps_after(2), "the run goes on with the other")
            mend()
            wait(lambda s=server, n=come: told_of(s, "is there") > n, f"{server.name} is taken in again")
            wait(steps_after(2), "both draw")
        for process in [p for h in trainers for p in h.processes]:
            process.send_signal(signal.SIGTERM)
        wait(
            lambda: all(p.poll() is not None for h in trainers for p in h.processes), "it is told to end", may_end=True
        )
    saved = [p.name for p in (runs / "tiny" / "checkpoints").iterdir()]
    assert saved == [f"step_{last_step():06d}"], f"nothing was saved: {saved}\n{told()}"


def main() -> int:
    for num_trainers in (2, 1):
        folder = Path(tempfile.mkdtemp(prefix="hosts_"))
        try:
            exercise(num_trainers, folder)
        except AssertionError as error:
            print(f"FAILED: {error}\nthe folder is {folder}")
            return 1
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
