"""`python -m bench gpu` on a CPU: made-up steps, a made-up worker, and GPUs that are only named."""

import importlib
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from bench.gpu import command, processes
from bench.gpu.command import choose
from bench.gpu.processes import ROOT, SubjectsProcess, run_program
from bench.gpu.record import LOG, RECORD, RESULTS, Answer, Record
from bench.gpu.steps import Need, Step, steps

WORKER = """
import json, os, signal, subprocess, sys, time
def reply(**content):
    print(json.dumps(content), flush=True)
if os.path.exists(sys.argv[1] + "/slow_start"):
    time.sleep(0.8)
reply(ready=True)
for line in sys.stdin:
    kind, *rest = json.loads(line)
    with open(sys.argv[1] + "/asked.txt", "a") as file:
        print(os.getpid(), kind, *rest, file=file)
    if kind == "raises":
        reply(code=1, failed={"the subject": "ValueError: it broke"})
    elif kind == "rows":
        reply(code=1, failed={"row b": "off by 3", "row c": "off by 4"})
    elif kind == "refuses":
        reply(code=2, failed={})
    elif kind == "hangs":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        with open(sys.argv[1] + "/child.txt", "w") as file:
            file.write(str(child.pid))
        time.sleep(60)
    elif kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        reply(code=0, failed={})
        if kind == "dies after":
            os.kill(os.getpid(), signal.SIGKILL)
"""
HANGING_PROGRAM = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(60)
"""


def subject(name: str, *arguments: str, limit_s: float = 20.0, needs: Need | None = None) -> Step:
    return Step("first", name, limit_s, arguments or ("passes",), True, needs)


def program(name: str, code: str = "", *arguments: str, limit_s: float = 20.0) -> Step:
    return Step("first", name, limit_s, (sys.executable, "-S", "-c", code, *arguments), False)


@pytest.fixture
def worker(tmp_path) -> tuple[str]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return (str(script),)


@pytest.fixture
def bench_gpu(tmp_path, monkeypatch, worker) -> Callable[..., int]:
    """The command on made-up steps; its folders are tmp_path's ``folder`` and ``out``."""
    monkeypatch.setattr(command, "gpu_names", lambda: ["NVIDIA Made-Up"])
    monkeypatch.setattr(command, "SubjectsProcess", partial(SubjectsProcess, command=worker))
    monkeypatch.setattr(command, "_show_results", lambda record, limit_s: None)
    monkeypatch.setattr(sys, "path", sys.path[:])
    folders = ["--folder", str(tmp_path / "folder"), "--out", str(tmp_path / "out"), "--carried", str(tmp_path / "no")]

    def call(made_up: Sequence[Step], *arguments: str) -> int:
        monkeypatch.setattr(command, "steps", lambda processes: list(made_up))
        return command.main([*folders, *arguments])

    return call


def answers(folder: Path) -> dict[str, Answer]:
    return Record(folder, None).answers


def states(folder: Path) -> dict[str, str]:
    return {name: answer.state for name, answer in answers(folder).items()}


def asked(folder: Path) -> list[tuple[str, str]]:
    """Process and first argument of everything that the made-up worker was asked."""
    lines = (folder / "results" / "asked.txt").read_text().splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def wait_until(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """It has ended; nobody may have asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# Before anything is started.


def test_without_a_gpu_it_says_so_with_2_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "gpu_names", lambda: [])
    assert command.main(["--folder", str(tmp_path / "folder"), "--out", str(tmp_path / "out")]) == 2
    assert "needs a CUDA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_list_needs_neither_a_gpu_nor_torch():
    code = "import sys; from bench.__main__ import main; print(main(['gpu', '--list']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    *listing, last = done.stdout.splitlines()
    assert last == "0 False", done.stderr
    assert [line.split(" s  ")[1].split("  (needs")[0] for line in listing if line.startswith("  ")] == [
        step.name for step in steps(1)
    ]


def test_a_step_that_there_is_not_is_refused_with_the_names(monkeypatch, capsys):
    monkeypatch.setattr(command, "gpu_names", lambda: pytest.fail("asked for a GPU"))
    with pytest.raises(SystemExit) as refused:
        command.main(["machine", "nosuch"])
    error = capsys.readouterr().err
    assert refused.value.code == 2 and "no step 'nosuch'" in error
    assert all(f"\n  {step.name}\n" in error + "\n" for step in steps(1))


def test_groups_and_names_choose_in_the_order_of_the_table():
    table = [Step(g, n, 1, (), True) for g, n in (("first", "a"), ("numbers", "b"), ("rest", "c"), ("first", "d"))]
    assert [s.name for s in choose(table, ["c", "first"])] == ["a", "c", "d"]
    assert choose(table, []) == table


# Failures.


def test_a_failed_subject_stops_no_other_and_is_named_in_the_last_lines(tmp_path, bench_gpu, capsys):
    made_up = [subject("a"), subject("b"), subject("c", "raises"), subject("d", "rows"), program("e"), subject("f")]
    assert bench_gpu(made_up) == 1
    assert states(tmp_path / "folder") == dict.fromkeys("abef", "passed") | dict.fromkeys("cd", "failed")
    *_, failed, total = capsys.readouterr().out.splitlines()
    assert failed == "failed: c (the subject: ValueError: it broke); d (row b: off by 3)"
    assert total.startswith("4 of 6 steps passed")
    assert answers(tmp_path / "folder")["d"].failed_rows == {"row b": "off by 3", "row c": "off by 4"}


def test_a_worker_serves_until_a_step_fails_and_then_there_is_a_new_one(tmp_path, bench_gpu):
    bench_gpu([subject("a"), subject("b"), subject("c", "raises"), subject("d"), subject("e")])
    a, b, c, d, e = (pid for pid, _ in asked(tmp_path / "folder"))
    assert a == b == c != d == e


def test_a_code_without_rows_and_a_program_s_code_are_reasons(tmp_path, bench_gpu):
    made_up = [subject("refused", "refuses"), program("exits", "raise SystemExit(3)"), program("passes")]
    made_up.append(Step("first", "absent", 5, ("/no/such/program",), False))
    assert bench_gpu(made_up) == 1
    found = {name: answer.why for name, answer in answers(tmp_path / "folder").items()}
    assert found["refused"] == "exit code 2" and found["exits"] == "exit code 3" and found["passes"] == ""
    assert "No such file" in found["absent"]


def test_a_process_that_dies_by_a_signal_is_named_and_the_next_runs(tmp_path, bench_gpu, capsys):
    killed = program("program", "import os; os.kill(os.getpid(), 9)")
    assert bench_gpu([subject("worker", "dies"), subject("next"), killed, subject("last")]) == 1
    assert states(tmp_path / "folder") == {"worker": "failed", "next": "passed", "program": "failed", "last": "passed"}
    *_, failed, _ = capsys.readouterr().out.splitlines()
    assert failed.startswith("failed: worker (its process died (SIGKILL)") and "program (SIGKILL)" in failed


def test_a_worker_that_dies_between_two_steps_costs_none(tmp_path, worker):
    (tmp_path / "results").mkdir()
    with (tmp_path / "log").open("w") as log:
        subjects = SubjectsProcess(tmp_path / "results", log, worker)
        assert subjects.run(subject("a", "dies after"), 20).state == "passed"
        wait_until(lambda: is_gone(int(asked(tmp_path)[0][0])))
        assert subjects.run(subject("b"), 20).state == "passed"
        subjects.close()


@pytest.mark.parametrize("kind", ["subject", "program"])
def test_a_step_that_hangs_is_killed_with_its_children_at_its_limit(tmp_path, bench_gpu, capsys, kind):
    child = tmp_path / "folder" / "results" / "child.txt"
    hangs = {
        "subject": subject("stuck", "hangs", limit_s=1.0),
        "program": program("stuck", HANGING_PROGRAM, str(child), limit_s=1.0),
    }
    assert bench_gpu([subject("before"), hangs[kind], subject("after"), program("last")]) == 1
    assert states(tmp_path / "folder") == {"before": "passed", "stuck": "failed", "after": "passed", "last": "passed"}
    assert 1.0 <= answers(tmp_path / "folder")["stuck"].seconds < 5.0
    *_, failed, _ = capsys.readouterr().out.splitlines()
    said = {"subject": "it hung, and was killed, after 1 s", "program": "ran past 1 s"}
    assert failed == f"failed: stuck ({said[kind]})"
    wait_until(lambda: is_gone(int(child.read_text())), 2.0)


def test_a_step_whose_guard_cannot_be_started_is_not_left_running(tmp_path, monkeypatch, worker):
    groups = []

    def no_process(*_: object, process_group: int, **__: object) -> None:
        groups.append(process_group)
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(processes.subprocess, "Popen", no_process)
    with (tmp_path / "log").open("w") as log:
        answer = run_program(program("hangs", "import time; time.sleep(60)"), 20, log)
        subjects = SubjectsProcess(tmp_path, log, worker).run(subject("hangs", "hangs"), 20)
    assert (answer.state, subjects.state) == ("failed", "failed")
    assert "no more processes" in answer.why and "no more processes" in subjects.why
    assert [is_gone(pid) for pid in groups] == [True, True]


def test_what_a_program_leaves_running_ends_with_it(tmp_path):
    code = "import subprocess, sys; c = subprocess.Popen(['sleep', '60']); open(sys.argv[1], 'w').write(str(c.pid))"
    with (tmp_path / "log").open("w") as log:
        assert run_program(program("leaves", code, str(tmp_path / "child")), 20, log).state == "passed"
    wait_until(lambda: is_gone(int((tmp_path / "child").read_text())), 2.0)


# The budget.


def test_steps_are_cut_at_the_budget_and_those_not_begun_are_named_in_order(tmp_path, bench_gpu, capsys, monkeypatch):
    monkeypatch.setattr(command, "CLOSING_S", 0.2)
    monkeypatch.setattr(command, "SHORTEST_S", 0.3)
    slow = program("slow", "import time; time.sleep(60)")
    started = time.monotonic()
    code = bench_gpu([program("quick"), slow, program("z"), subject("y"), subject("x")], "--budget_s", "1.5")
    assert code == 1
    assert 1.2 < time.monotonic() - started < 10  # without the budget it would be 60
    assert list(states(tmp_path / "folder").items()) == [("quick", "passed"), ("slow", "failed")]
    *_, missed, failed, total = capsys.readouterr().out.splitlines()
    assert missed == "not reached: z; y; x"
    assert failed.startswith("failed: slow (ran past ")
    assert total.startswith("1 of 5 steps passed")


def test_a_slow_start_of_the_worker_is_not_of_a_subjects_limit_but_of_the_budget(tmp_path, worker):
    results = tmp_path / "results"
    results.mkdir()
    (results / "slow_start").touch()
    with (tmp_path / "log").open("w") as log:
        subjects = SubjectsProcess(results, log, worker)
        spared = subjects.run(subject("spared", "hangs", limit_s=1.3), 20.0)
        cut = subjects.run(subject("cut", "hangs", limit_s=20.0), 1.0)
    assert spared.state == cut.state == "failed"
    assert spared.seconds >= 0.8 + 1.3 / 2
    assert 1.0 <= cut.seconds < 10  # of the 20 that its own limit gives


def test_results_that_take_too_long_to_show_raise_nothing(tmp_path, capsys):
    command._show_results(Record(tmp_path, None), 0.01)
    assert "no time was left to show the results" in capsys.readouterr().out


# A call that goes on.


def test_a_later_call_skips_what_passed_and_tries_what_failed_last(tmp_path, bench_gpu):
    made_up = [subject("a", "raises"), subject("b", "passes", "b"), subject("c", "passes", "c")]
    assert bench_gpu(made_up[:2]) == 1
    made_up[0] = subject("a", "passes", "mended")
    assert bench_gpu(made_up) == 0
    assert [what for _, what in asked(tmp_path / "folder")] == ["raises", "passes b", "passes c", "passes mended"]


def test_a_step_without_what_it_needs_is_skipped_unstarted_and_asked_again_later(tmp_path, bench_gpu, capsys):
    there = []
    needing = subject("b", needs=Need("a thing", lambda gpus: bool(there)))
    assert bench_gpu([needing]) == 0
    assert answers(tmp_path / "folder")["b"] == Answer("b", "skipped", why="needs a thing")
    assert not (tmp_path / "folder" / "results" / "asked.txt").exists()
    assert "skipped: b (needs a thing)" in capsys.readouterr().out
    there.append("now")
    assert bench_gpu([needing], "--budget_s", "0") == 1  # it could run and does not
    assert "not reached: b" in capsys.readouterr().out
    assert bench_gpu([needing]) == 0
    assert states(tmp_path / "folder") == {"b": "passed"}


def test_a_need_may_lie_among_the_carried_packages(tmp_path, bench_gpu, monkeypatch):
    monkeypatch.setattr(command, "CARRIED", tmp_path / "site")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "carried_peer.py").touch()
    needs = Need("carried_peer", lambda gpus: importlib.util.find_spec("carried_peer") is not None)
    assert bench_gpu([subject("a", needs=needs)]) == 0
    assert states(tmp_path / "folder") == {"a": "passed"}


def killed_in_its_third_step(folder: str, worker: str) -> None:
    """The runner that the next test kills."""
    command.gpu_names = lambda: ["NVIDIA Made-Up"]
    command.SubjectsProcess = partial(SubjectsProcess, command=(worker,))
    made_up = [subject("a"), subject("b", "raises"), subject("c", "hangs"), subject("d")]
    command.steps = lambda processes: made_up
    command.main(["--folder", f"{folder}/folder", "--out", f"{folder}/out", "--carried", f"{folder}/no"])


def test_a_killed_runner_takes_all_along_and_has_handed_out_what_was_finished(tmp_path, bench_gpu, worker):
    code = f"from tests.bench.test_gpu_runner import *; killed_in_its_third_step({str(tmp_path)!r}, {worker[0]!r})"
    folder, out = tmp_path / "folder", tmp_path / "out"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_until((folder / "results" / "child.txt").exists)
    finally:
        runner.kill()
        runner.wait()
    hanging = next(int(pid) for pid, kind in asked(folder) if kind == "hangs")
    its_child = int((folder / "results" / "child.txt").read_text())
    wait_until(lambda: is_gone(hanging) and is_gone(its_child), 2.0)

    assert [json.loads(line)["step"] for line in (out / RECORD).read_text().splitlines()] == ["a", "b"]
    assert "=== a: passed" in (out / LOG).read_text() and "=== b: failed" in (out / LOG).read_text()
    with tarfile.open(out / RESULTS) as archive:
        kept = archive.extractfile("./asked.txt")
        assert kept is not None and kept.read().decode().split("\n")[0].endswith(" passes")

    (folder / "results" / "asked.txt").unlink()
    made_up = [subject("a"), subject("b", "passes", "mended"), subject("c", "passes", "again"), subject("d")]
    assert bench_gpu(made_up) == 0
    assert [what for _, what in asked(folder)] == ["passes again", "passes", "passes mended"]


def test_the_folder_that_is_carried_home_holds_three_whole_files_after_every_step(tmp_path, bench_gpu):
    out = tmp_path / "out"
    looks = "import os, sys, tarfile; print(sorted(os.listdir(sys.argv[1])), tarfile.open(sys.argv[2]).getnames())"
    looking = program("b", looks, str(out), str(out / RESULTS))
    assert bench_gpu([subject("a"), looking, subject("c")]) == 0
    names = sorted([LOG, RECORD, RESULTS])
    log = (tmp_path / "folder" / LOG).read_text()
    assert f"{names} ['.', './asked.txt']" in log
    assert sorted(p.name for p in out.iterdir()) == names
    assert (out / LOG).read_text() == log
    assert (out / RECORD).read_text() == (tmp_path / "folder" / RECORD).read_text()
    with tarfile.open(out / RESULTS) as archive:
        kept = archive.extractfile("./asked.txt")
        assert kept is not None and kept.read() == (tmp_path / "folder" / "results" / "asked.txt").read_bytes()


# The real worker.


def test_the_real_worker_runs_a_subject_and_its_results_are_in_the_record_s_folder(tmp_path):
    with (tmp_path / "log").open("w") as log:
        subjects = SubjectsProcess(tmp_path / "results", log)
        try:
            passed = subjects.run(subject("machine", "machine", "--device", "cpu", limit_s=120), 120)
            refused = subjects.run(subject("refused", "machine", "--device", "nosuch", limit_s=120), 120)
        finally:
            subjects.close()
    log_text = (tmp_path / "log").read_text()
    assert (passed.state, passed.why) == ("passed", ""), log_text
    (result,) = (tmp_path / "results").glob("cpu-*/machine.json")
    assert json.loads(result.read_text())["subject"] == "machine"
    assert (refused.state, refused.why) == ("failed", "exit code 2")
    assert "invalid choice: 'nosuch'" in log_text


FAKED_SUBJECTS = """
import os, sys
from bench import __main__, harness
from bench.gpu import worker
def main(arguments):
    kind, = arguments
    print("a subject prints", kind)
    if kind == "raises":
        raise ValueError("it broke")
    if kind == "says":
        sys.exit("no such shape")
    if kind == "ends":
        sys.exit()
    if kind == "reads":
        return int(not os.path.samestat(os.fstat(0), os.stat(os.devnull)))
    if kind == "rows":
        return harness.exit_code("made up", {"row b": "off by 3"})
    return 0
__main__.main = main
worker.main(sys.argv[1])
"""


def test_the_worker_answers_every_way_in_which_a_subject_can_end(tmp_path):
    kinds = ("passes", "raises", "says", "ends", "rows", "reads", "passes")
    done = subprocess.run(
        [sys.executable, "-c", FAKED_SUBJECTS, str(tmp_path)], cwd=ROOT, env=processes.environment({}), timeout=120,
        input="".join(json.dumps([kind]) + "\n" for kind in kinds), capture_output=True, text=True,
    )  # fmt: skip
    ready, *replies = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True}, done.stderr
    assert [(r["code"], r["failed"]) for r in replies] == [
        (0, {}),
        (1, {"the subject": "ValueError: it broke"}),
        (1, {"the subject": "no such shape"}),
        (0, {}),
        (1, {"row b": "off by 3"}),
        (0, {}),  # a child finds nothing to read
        (0, {}),
    ]
    assert all(f"a subject prints {kind}" in done.stderr for kind in kinds)
