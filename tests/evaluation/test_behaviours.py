"""The four behaviours, judged by a small server of our own that speaks the protocol; no real judge was ever asked."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastgrpo.evaluation.behaviours import BEHAVIOURS, parse_reply
from fastgrpo.evaluation.chat_server import ChatServer, Refusal
from tests.evaluation.running import evaluate, rows

ALL_FALSE = dict.fromkeys(BEHAVIOURS, False)


class Judge:
    """Answers each request with what ``answer`` makes of its body: a text, or (status, text)."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.answer: Callable[[dict], str | tuple[int, str]] = lambda body: json.dumps(ALL_FALSE)
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.bodies.append(body)
                judge.headers.append({"path": self.path, **dict(self.headers)})
                answer = judge.answer(body)
                status, text = answer if isinstance(answer, tuple) else (200, answer)
                message = {"choices": [{"message": {"role": "assistant", "content": text}}]}
                reply = (json.dumps(message) if status == 200 else text).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # who waits no longer has closed its end
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("fastgrpo.evaluation.chat_server.RETRY_AFTER_S", (0.0, 0.0))
    judge = Judge()
    yield judge
    judge.server.shutdown()


def settings_for(judge: Judge, *more: str) -> list[str]:
    return ["--problems", "6", "--behaviours", judge.url, "--behaviours_model", "somebody", *more]


def response_in(body: dict) -> str:
    words = body["messages"][0]["content"]
    return words.split("<response>\n")[1].split("\n</response>")[0]


def found(folder, name: str = "held_out") -> dict:
    return json.loads((folder / "behaviours.json").read_text())["benchmarks"][name]


def test_each_first_response_is_asked_about_and_the_ratios_are_the_shares_of_yes(judge, tiny_base, tmp_path, capsys):
    def answer(body: dict) -> str:
        n = len(judge.bodies)
        return "I think: " + json.dumps({**ALL_FALSE, "verification": n % 2 == 0, "enumeration": True})

    judge.answer = answer
    assert evaluate(tiny_base, tmp_path, *settings_for(judge, "--behaviours_concurrency", "1")) == 0
    folder = tmp_path / "e"
    texts = [r["text"] for r in rows(folder, "generations") if r["sample"] == 0]
    assert [response_in(body) for body in judge.bodies] == texts
    assert {body["model"] for body in judge.bodies} == {"somebody"}
    assert {h["path"] for h in judge.headers} == {"/v1/chat/completions"}
    assert not any("Authorization" in h for h in judge.headers)
    assert found(folder) == {
        "num_judged": 6, "num_left_out": 0, "backtracking": 0.0, "verification": 0.5, "subgoal_setting": 0.0,
        "enumeration": 1.0,
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "## Cognitive behaviours" in printed and "somebody" in printed and " 50.0 " in printed


@pytest.mark.slow
def test_judgements_that_are_there_are_kept_and_another_judge_begins_anew(judge, tiny_base, tmp_path):
    assert evaluate(tiny_base, tmp_path, *settings_for(judge)) == 0
    assert len(judge.bodies) == 6
    assert evaluate(tiny_base, tmp_path, *settings_for(judge)) == 0
    assert len(judge.bodies) == 6
    path = tmp_path / "e" / "behaviours.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # as a kill leaves it
    assert evaluate(tiny_base, tmp_path, *settings_for(judge)) == 0
    assert len(judge.bodies) == 8
    settings = settings_for(judge, "--behaviours_samples", "0")
    assert evaluate(tiny_base, tmp_path, *settings) == 0
    assert len(judge.bodies) == 14
    settings[settings.index("somebody")] = "another"
    assert evaluate(tiny_base, tmp_path, *settings) == 0
    assert len(judge.bodies) == 26 and judge.bodies[-1]["model"] == "another"


@pytest.mark.slow
def test_a_busy_server_and_half_a_reply_are_tried_again_and_an_unreadable_one_is_left_out(judge, tiny_base, tmp_path):
    seen: dict[str, int] = {}

    def answer(body: dict) -> str | tuple[int, str]:
        response = response_in(body)
        seen[response] = times = seen.get(response, 0) + 1
        first = next(iter(seen))
        if response == first:
            return "I would rather not say."
        return (503, "busy") if times == 1 else json.dumps(ALL_FALSE)

    judge.answer = answer
    assert evaluate(tiny_base, tmp_path, *settings_for(judge, "--behaviours_concurrency", "1")) == 0
    texts = [r["text"] for r in rows(tmp_path / "e", "generations") if r["sample"] == 0]
    left_out = texts.count(texts[0])
    assert found(tmp_path / "e")["num_left_out"] == left_out
    assert found(tmp_path / "e")["num_judged"] == 6 - left_out
    assert seen[texts[0]] == 3 * left_out
    unreadable = [b["temperature"] for b in judge.bodies if response_in(b) == texts[0]]
    assert unreadable[:3] == [0.0, 0.7, 0.7]


@pytest.mark.slow
def test_a_response_that_the_server_finds_too_long_is_left_out(judge, tiny_base, tmp_path):
    judge.answer = lambda body: (400, "too long") if len(judge.bodies) == 2 else json.dumps(ALL_FALSE)
    assert evaluate(tiny_base, tmp_path, *settings_for(judge, "--behaviours_concurrency", "1")) == 0
    assert (found(tmp_path / "e")["num_judged"], found(tmp_path / "e")["num_left_out"]) == (5, 1)
    assert '"failure": "400: too long"' in (tmp_path / "e" / "behaviours.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("status, code", [(404, 2), (401, 2), (400, 2), (503, 1)])
def test_a_server_that_refuses_or_fails_ends_the_stage_with_its_words(judge, tiny_base, tmp_path, capsys, status, code):
    judge.answer = lambda body: (status, "no such thing here")
    assert evaluate(tiny_base, tmp_path, *settings_for(judge)) == code
    assert "no such thing here" in capsys.readouterr().err
    assert (tmp_path / "e" / "results.md").exists()  # what was drawn and judged is told all the same
    judge.answer = lambda body: json.dumps(ALL_FALSE)
    assert evaluate(tiny_base, tmp_path, *settings_for(judge)) == 0
    assert found(tmp_path / "e")["num_left_out"] == 0  # nothing was held against the responses


@pytest.mark.slow
def test_a_key_is_sent_from_its_file_alone(judge, tiny_base, tmp_path, capsys):
    key = tmp_path / "key"
    key.write_text("a-key\n")
    assert evaluate(tiny_base, tmp_path, *settings_for(judge, "--behaviours_key_file", str(key))) == 0
    assert {h["Authorization"] for h in judge.headers} == {"Bearer a-key"}
    assert evaluate(tiny_base, tmp_path, *settings_for(judge, "--behaviours_key_file", str(tmp_path / "none"))) == 2
    assert "behaviours_key_file" in capsys.readouterr().err


def test_a_reply_that_does_not_come_is_waited_for_only_so_long(judge):
    judge.answer = lambda body: time.sleep(2.0) or "late"
    server = ChatServer(judge.url, "m", "", timeout_s=0.1)
    with pytest.raises(ConnectionError, match="no reply in 3 tries"):
        server.chat("words", 0.0, 0)
    assert len(judge.bodies) == 3


def test_what_is_no_completion_is_tried_again(judge):
    judge.server.RequestHandlerClass.do_POST = lambda self: (
        self.send_response(200), self.send_header("Content-Length", "2"), self.end_headers(), self.wfile.write(b"{}")
    )  # fmt: skip
    with pytest.raises(ConnectionError, match="no chat completion"):
        ChatServer(judge.url, "m", "", timeout_s=5.0).chat("words", 0.0, 0)


def test_a_refusal_is_not_a_reply(judge):
    judge.answer = lambda body: (422, "odd")
    assert isinstance(ChatServer(judge.url, "m", "", timeout_s=5.0).chat("words", 0.0, 0), Refusal)


@pytest.mark.parametrize(
    "reply, expected",
    [
        (json.dumps(ALL_FALSE), ALL_FALSE),
        (f"```json\n{json.dumps(ALL_FALSE, indent=2)}\n```", ALL_FALSE),
        (f'{{"a": 1}} first {json.dumps(ALL_FALSE)} then {{"note": 1}}', ALL_FALSE),
        (json.dumps({**ALL_FALSE, "verification": True, "more": 3}), {**ALL_FALSE, "verification": True}),
        (json.dumps({**ALL_FALSE, "verification": "yes"}), None),
        (json.dumps({"verification": True}), None),
        ("verification: true", None),
        ("{not json}", None),
        ("", None),
    ],
)
def test_of_a_reply_the_last_whole_judgement_counts(reply, expected):
    assert parse_reply(reply) == expected
