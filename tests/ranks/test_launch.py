"""The launcher and its ranks."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from fastgrpo.command_line.ending import ANNOUNCING
from fastgrpo.ranks import launch, launched_ranks, meet, signals
from fastgrpo.ranks.one_machine import is_on_one_machine, unreachable_name
from fastgrpo.ranks.rendezvous import LISTENER
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]


def fastgrpo(*arguments: str, **options) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fastgrpo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("told", [{"RANK": "x"}, {"RANK": "-1", "WORLD_SIZE": "1"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_ranks_that_no_launcher_writes_are_refused(told, monkeypatch):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"RANK={told['RANK']} of WORLD_SIZE="):
        launched_ranks()


def test_ranks_refuse_by_themselves_what_torchrun_starts_them_with_and_say_it_once(capfd):
    assert launch.launch([str(TINY), "--data.prompts_per_step", "7"], num_ranks=2) == 2
    assert capfd.readouterr().err.count("cannot be split into") == 1


def test_a_rank_without_a_prompt_takes_part_and_what_only_the_first_finds_out_is_every_ranks_refusal(
    tmp_path, tiny_base
):
    shutil.copytree(tiny_base, tmp_path / "tiny" / "base")
    settings = ["--runs_dir", str(tmp_path), "--steps", "1", "--data.prompts_per_step", "2", "--data.held_out", ""]
    done = fastgrpo("train", "--ranks", "3", str(TINY), *settings)
    assert done.returncode == 0, done.stderr
    again = fastgrpo("train", "--ranks", "3", str(TINY), *settings)
    assert again.returncode == 2
    assert again.stderr.count("holds a run already") == 1 and "Traceback" not in again.stderr


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path):
    command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", "2", str(TINY), "--runs_dir", str(tmp_path)]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ranks: list[psutil.Process] = []
    while len(ranks) < 2:
        ranks = psutil.Process(launcher.pid).children()
        time.sleep(0.05)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert alive == []


def children_of(*commands: str) -> "list[subprocess.Popen[bytes]]":
    return [subprocess.Popen(["sh", "-c", f"exec {command}"], stdin=subprocess.PIPE) for command in commands]


def stop(child: "subprocess.Popen[bytes]") -> None:
    os.kill(child.pid, signal.SIGSTOP)
    while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


def test_a_stopped_rank_does_not_outlive_one_that_failed(monkeypatch, capfd):
    monkeypatch.setattr(launch, "GRACE_S", 0.5)
    failing, stopped, ending = children_of("python3 -c 'input(); exit(3)'", "sleep 1000", "sleep 0")
    stop(stopped)
    failing.communicate(b"now\n")
    assert launch._wait([failing, stopped, ending]) == 3
    assert stopped.returncode == -signal.SIGKILL
    assert "rank 1 did not end by itself in 0.5 s and is killed" in capfd.readouterr().err


def test_a_killed_rank_takes_a_stopped_one_with_it(monkeypatch, capfd):
    monkeypatch.setattr(launch, "GRACE_S", 0.5)
    stopped, killed = children_of("sleep 1000", "sleep 1000")
    stop(stopped)
    killed.kill()
    assert launch._wait([stopped, killed]) == 128 + signal.SIGKILL
    assert stopped.returncode == -signal.SIGKILL
    assert "rank 1 was ended by signal 9" in capfd.readouterr().err


def test_a_rank_that_the_kernel_does_not_let_go_of_does_not_keep_the_launcher(monkeypatch, capfd):
    monkeypatch.setattr(launch, "GRACE_S", 0.1)
    monkeypatch.setattr(launch, "KILL_S", 0.1)
    failed, stuck = children_of("false", "sleep 1000")
    monkeypatch.setattr(stuck, "kill", lambda: None)  # as if it hung in a file system
    assert launch._wait([failed, stuck]) == 1
    assert f"does not let go of rank 1, pid {stuck.pid}" in capfd.readouterr().err
    os.kill(stuck.pid, signal.SIGKILL)
    stuck.wait()


def test_a_rank_that_waits_for_a_killed_one_is_told_to_end(monkeypatch, capfd):
    monkeypatch.setattr(launch, "GRACE_S", 60.0)
    waiting, killed = children_of("sleep 1000", "sleep 1000")
    killed.kill()
    assert launch._wait([waiting, killed]) == 128 + signal.SIGKILL
    assert waiting.returncode == -signal.SIGTERM
    assert capfd.readouterr().err == "fastgrpo: rank 1 was ended by signal 9\n"


def launched(*commands: str, then: Callable[[], None]) -> int:
    """The exit code of a launch whose ranks are these commands, in which something happens."""
    rest = iter(commands)
    threading.Timer(0.3, then).start()
    return launch.launch([], len(commands), lambda *_: children_of(next(rest))[0])


@pytest.mark.parametrize("number", ANNOUNCING)
def test_every_announced_end_is_told_to_the_ranks_as_sigterm(monkeypatch, number, capfd):
    monkeypatch.setattr(launch, "CAUSE_S", 0.05)
    assert launched("sleep 1000", "sleep 1000", then=lambda: os.kill(os.getpid(), number)) == 128 + number
    assert capfd.readouterr().err == (
        f"fastgrpo: ended by {number.name}; what is saved is whole, and --resume goes on from the last "
        "checkpoint, if there is one\n"
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ranks_that_saved_give_the_code(capfd, tmp_path):
    saving = f"""sh -c 'trap "exit 75" TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done'"""

    def hang_up() -> None:
        wait_for(tmp_path / "ready")
        os.kill(os.getpid(), signal.SIGHUP)

    assert launched(saving, then=hang_up) == 75
    assert capfd.readouterr().err == ""


def test_a_second_ctrl_c_kills_ranks_that_do_not_listen(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(signals, "ANSWER_S", 0.1)
    deaf = """sh -c 'trap "" TERM; touch {}; exec sleep 1000'"""

    def press_twice() -> None:
        for rank in range(2):
            wait_for(tmp_path / str(rank))
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    ranks = [deaf.format(tmp_path / str(rank)) for rank in range(2)]
    assert launched(*ranks, then=press_twice) == 128 + signal.SIGINT
    assert capfd.readouterr().err.count("ended by SIGINT, at once after a second Ctrl-C") == 1


def rendezvous(monkeypatch, port: int, **launched: str) -> dist.Store:
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", **launched}
    for name, value in {**names, "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    return meet(timedelta(seconds=5))


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"rank 0 cannot meet the others at 127.0.0.1:{port} .*in use"):
            rendezvous(monkeypatch, port)


def test_on_one_machine_ranks_meet_on_loopback_alone(monkeypatch):
    """At the launcher's socket, or at one of their own."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]
        monkeypatch.setenv(LISTENER, str(os.dup(given.fileno())))
        stores = [rendezvous(monkeypatch, port), rendezvous(monkeypatch, launch.free_port())]
    listening = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= len(stores) and set(listening) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("launched", "is_one"),
    [
        ({}, True),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node1"}, True),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node1"}, False),
        ({"WORLD_SIZE": "8", "MASTER_ADDR": "node1"}, False),  # srun
        ({"WORLD_SIZE": "8", "MASTER_ADDR": "localhost"}, False),  # as a Kubeflow job's first pod calls itself
        ({"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}, True),
    ],
)
def test_loopback_is_taken_only_where_all_ranks_are_on_one_machine(monkeypatch, launched, is_one):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert is_on_one_machine() == is_one


@pytest.mark.parametrize(
    ("launched", "address", "is_warned"),
    [
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, "127.0.1.1", True),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, "10.77.0.1", False),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GLOO_SOCKET_IFNAME": "eth0"}, "127.0.1.1", False),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, "127.0.1.1", False),
    ],
)
def test_a_host_whose_name_others_do_not_reach_says_so(monkeypatch, launched, address, is_warned):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("socket.gethostbyname", lambda name: address)
    assert bool(unreachable_name()) == is_warned


def test_on_a_cpu_one_rank_takes_all_cores_where_a_model_outgrows_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(launch, "num_cores", lambda: 4)
    weights = tmp_path / "model.safetensors"
    for num_bytes, num_ranks in ((1000, 2), (launch.IN_CACHE + 1, 1)):
        with weights.open("wb") as file:
            file.truncate(num_bytes)
        assert launch.default_num_ranks(str(tmp_path), 8) == num_ranks
    assert launch.default_num_ranks("not/there", 1) == 1  # as the recipe says of a model that it has yet to make
    assert launch.default_num_ranks() == 2
