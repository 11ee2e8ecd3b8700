"""The examples of docs/your_own_idea.md, each as it stands there, in small."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fastgrpo.recipe import load_recipe
from tests.recipes.shrunk import Metrics, run_shrunk
from tests.rewards.sandboxes import needs_bwrap

PAGE = (Path(__file__).parents[2] / "docs" / "your_own_idea.md").read_text()
EXAMPLES = dict(re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture
def run_example(tmp_path: Path):
    def run(title: str, *settings: str) -> Metrics:
        return run_shrunk(str(written(title, tmp_path)), tmp_path, *settings)

    return run


def written(title: str, folder: Path) -> Path:
    path = folder / "example.py"
    path.write_text(EXAMPLES[title])
    return path


def test_the_page_has_five_examples():
    assert len(EXAMPLES) == PAGE.count("```python\n") == 5


def test_a_reward_from_a_column_gives_partial_credit(run_example):
    records = run_example("A reward from a column of the data")
    assert len(records) == 3 and all(r["verifier_failures"] == 0 for r in records)
    rewards = [r["reward"] for r in records]
    assert all(0 <= r <= 1 for r in rewards) and any(r["reward_std"] > 0 for r in records)
    assert any(r["reward"] != r["accuracy"] for r in records)  # more than right and wrong


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # as many may connect at once


class Judge(BaseHTTPRequestHandler):
    """A chat server: 10 for a solution that has the reference in it, 5 for any other."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        reference, solution = re.search(r"\nReference: (.*)\nSolution: (.*)\nGrade", asked, re.DOTALL).groups()
        said = {"role": "assistant", "content": "10" if reference in solution else "5"}
        choices = [{"index": 0, "finish_reason": "stop", "message": said}]
        body = json.dumps({"id": "1", "created": 0, "model": "judge", "choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def judge() -> Iterator[str]:
    server = Server(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_judge_over_http_is_asked_about_every_response(run_example, judge, monkeypatch):
    monkeypatch.setenv("JUDGE_URL", f"{judge}/v1")
    for r in run_example("A judge over HTTP"):
        assert r["verifier_failures"] == 0 and 0.5 <= r["reward/judge"] <= 1 and r["reward/short"] == 1
        assert r["reward"] == pytest.approx(r["reward/judge"] + 0.05)


@needs_bwrap
def test_a_program_is_worth_the_share_of_hidden_tests_that_it_passes(run_example, tmp_path):
    assert all(r["verifier_failures"] == 0 and r["reward"] == 0 for r in run_example("Code against hidden tests"))
    namespace: dict[str, Any] = {}
    exec(EXAMPLES["Code against hidden tests"], namespace)
    row = {"tests": {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}}
    for program, share in [("print(sum(map(int, input().split())))", 1.0), ("print(3)", 0.5), ("1/0", 0.0)]:
        assert namespace["reward"](f"So:\n```python\n{program}\n```", "", row) == share


def test_a_loss_of_ones_own_trains(run_example):
    records = run_example("A loss")
    assert all(r["grad_norm"] > 0 and r["skipped_updates"] == 0 for r in records)


def test_a_metric_of_ones_own_is_recorded(run_example):
    for r in run_example("A metric"):
        assert r["recipe/length_right"] >= 0 and r["recipe/length_wrong"] > 0


@pytest.mark.parametrize("title", list(EXAMPLES))
def test_an_example_says_what_it_is(title, tmp_path):
    assert load_recipe(written(title, tmp_path)).about
