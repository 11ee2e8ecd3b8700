"""An evaluation whose responses servers draw: who may, what is said where one may not, and what is kept."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from fastgrpo.evaluate import main
from fastgrpo.rollout.servers import channel, watch
from tests.evaluation.replier import replier
from tests.evaluation.running import evaluate, rows
from tests.rollout.servers.accounts import about
from tests.rollout.servers.fake_server import ABOUT, GENERATE, Asked, FakeServer, drawn_of, refusal
from tests.rollout.servers.until import until

KEY = "sesame"
RULE = ("--rule", "fastgrpo.rewards:strict_boxed")


class Seeded(FakeServer):
    """Draws what the prompt and the seed of a request say, by the weights that it says to have."""

    def __init__(self) -> None:
        super().__init__(KEY)
        self.tells_labels = True
        self.before_answer: Callable[[int], None] = lambda count: None  # with the number of draws until now

    async def _found(self, asked: Asked) -> tuple[int, Any]:
        if asked.path == GENERATE:
            self.before_answer(len(self.of(GENERATE)))
            seed = asked.body["sampling_params"]["seed"]
            ids = [1 + (seed >> shift) % 13 for shift in range(0, 1 + len(asked.body["token_ids"]), 4)]
            self.drawn = drawn_of(ids, spans=((0, self.label),) if self.tells_labels else ())
        return await super()._found(asked)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.02)
    monkeypatch.setattr(channel, "ALIVE_S", 0.05)
    (tmp_path / "key").write_text(KEY)


@pytest.fixture
def serving(tiny_base: Path) -> Iterator[Callable[[], Seeded]]:
    """Makes servers of the tiny model."""
    config = AutoConfig.from_pretrained(tiny_base / "model")
    made: list[Seeded] = []

    def make(**other: Any) -> Seeded:
        facts = {
            "model": str(tiny_base / "model"), "model_type": config.model_type, "vocabulary": config.vocab_size,
            "layers": config.num_hidden_layers, "width": config.hidden_size, "max_model_len": 64, **other,
        }  # fmt: skip
        server = Seeded()
        server.about = about(**facts).to_json()
        made.append(server)
        return server.__enter__()

    yield make
    for server in made:
        server.__exit__()


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(watch.log, "warning", lambda text, *words: found.append(text % words))
    monkeypatch.setattr("fastgrpo.rollout.servers.pool.log.warning", lambda text, *words: found.append(text % words))
    return found


def served(base: Path, out: Path, servers: list[Seeded], *more: str) -> int:
    urls = [server.url for server in servers]
    return evaluate(base, out, *RULE, "--servers", *urls, "--server_key_file", str(out / "key"), *more)


@contextmanager
def meanwhile(is_so: Callable[[], object], act: Callable[[], None]) -> Iterator[None]:
    """Acts, on another thread, once it is so."""

    def wait() -> None:
        until(is_so)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "e" / "evaluation.json").read_text())


# What is drawn.


def test_responses_do_not_depend_on_how_many_servers_draw_them(serving, tiny_base, tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "key").write_text(KEY)
    one, *two = serving(), serving(vllm="0.31.0"), serving()
    two[0].tells_labels = False  # as vLLM before 0.32
    assert served(tiny_base, tmp_path, [one]) == 0
    assert served(tiny_base, tmp_path / "two", two, "--max_sequences", "4") == 0
    drawn = rows(tmp_path / "e", "generations")
    assert len(drawn) == 32 and drawn == rows(tmp_path / "two" / "e", "generations")
    assert rows(tmp_path / "e", "verdicts") == rows(tmp_path / "two" / "e", "verdicts")
    bodies = [asked.body["sampling_params"]["seed"] for asked in one.of(GENERATE)]
    of_two = [asked.body["sampling_params"]["seed"] for server in two for asked in server.of(GENERATE)]
    assert Counter(bodies) == Counter(of_two) and len(set(bodies)) == 32
    assert all(server.of(GENERATE) for server in two)


def test_the_record_names_what_drew_and_rows_look_as_ever(serving, tiny_base, tmp_path):
    assert served(tiny_base, tmp_path, [serving(), serving(vllm="0.33.1")]) == 0
    assert record(tmp_path)["engine"] == "vllm servers"
    assert record(tmp_path)["servers"] == {"vllm": ["0.32.0+cpu", "0.33.1"], "dtype": "float32"}
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert results["about"]["servers"] == record(tmp_path)["servers"]
    assert evaluate(tiny_base, tmp_path, *RULE, "--name", "ours") == 0
    ours = rows(tmp_path / "ours", "generations")
    assert [list(row) for row in rows(tmp_path / "e", "generations")] == [list(row) for row in ours]
    assert "servers" not in json.loads((tmp_path / "ours" / "evaluation.json").read_text())


def test_servers_need_neither_what_a_trainer_writes_by_nor_its_logprobs(serving, tiny_base, tmp_path):
    by_hand = serving(backend="", logprobs_mode="raw_logprobs", dtype="bfloat16")
    assert served(tiny_base, tmp_path, [by_hand], "--problems", "2") == 0
    assert record(tmp_path)["servers"]["dtype"] == "bfloat16"


def test_a_file_of_servers_that_grows_is_read_again(serving, tiny_base, tmp_path):
    first, second = serving(), serving()
    first.hold(GENERATE)
    listed = tmp_path / "servers"
    listed.write_text(first.url)
    settings = ("--servers", str(listed), "--server_key_file", str(tmp_path / "key"), "--max_sequences", "4")

    def join() -> None:
        listed.write_text(f"{first.url}\n{second.url}")
        until(lambda: second.of(GENERATE))
        first.release(GENERATE)

    with meanwhile(lambda: first.of(GENERATE), join):
        assert evaluate(tiny_base, tmp_path, *RULE, *settings) == 0
    assert len(rows(tmp_path / "e", "generations")) == 32


@pytest.mark.slow
def test_the_verifier_model_answers_here(serving, tiny_base, tmp_path):
    server = serving()
    model = replier(tiny_base, tmp_path / "model", "A", positions=8192)
    assert served(tiny_base, tmp_path, [server], "--problems", "2", "--verifier_model", model) == 0
    assert len(server.of(GENERATE)) == 4
    last = {(v["problem"], v["sample"]): v for v in rows(tmp_path / "e", "verdicts")}
    assert [v["model"] for v in last.values() if not v["rule"]] == [True] * sum(not v["rule"] for v in last.values())


# Who may not draw.


def written(server: Seeded) -> None:
    server.label = "0123abc/17"


def with_other_key(server: Seeded) -> None:
    server.key = "another"


def without_routes(server: Seeded) -> None:
    server.refusals[ABOUT] = refusal(404, "Not Found")


@pytest.mark.parametrize(
    "other, why",
    [
        ({"model": "/models/tiny"}, "it serves another model, /models/tiny: this evaluation is of "),
        ({"layers": 3}, "it serves another model, "),
        ({"quantization": "fp8"}, "it computes in fp8, this evaluation needs float32"),
        ({"max_model_len": 30}, "it takes sequences of 30 tokens, this evaluation needs "),
        (written, "a trainer has written its weights (their label is '0123abc/17'), which are not those of its model"),
        (
            with_other_key,
            "it wants another key: put it into the environment as VLLM_API_KEY, or name --server_key_file",
        ),
        (without_routes, "it has no routes for a trainer: start it with VLLM_PLUGINS=fastgrpo"),
    ],
    ids=lambda value: getattr(value, "__name__", "".join(value) if isinstance(value, dict) else ""),
)
def test_one_that_does_not_fit_is_refused_by_name_before_anything_is_drawn(
    serving, tiny_base, tmp_path, capsys, other, why
):
    fits, unfit = serving(), serving(**(other if isinstance(other, dict) else {}))
    if callable(other):
        other(unfit)
    assert served(tiny_base, tmp_path, [fits, unfit]) == 2
    assert f"fastgrpo: server {unfit.url}: {why}" in capsys.readouterr().err
    assert fits.of(GENERATE) == unfit.of(GENERATE) == []
    assert served(tiny_base, tmp_path, [fits], "--problems", "2") == 0  # the folder is as good as new


def test_all_compute_in_one_dtype_which_stays_that_of_the_evaluation(serving, tiny_base, tmp_path, capsys):
    float32, bfloat16 = serving(), serving(dtype="bfloat16")
    assert served(tiny_base, tmp_path, [bfloat16], "--dtype", "float32") == 2
    assert "it computes in bfloat16, this evaluation needs float32: start it with --dtype" in capsys.readouterr().err
    assert served(tiny_base, tmp_path, [float32, bfloat16]) == 2
    assert ": start it with --dtype" in capsys.readouterr().err

    bfloat16.before_answer = lambda count: written(bfloat16) if count > 20 else None
    assert served(tiny_base, tmp_path, [bfloat16], "--max_sequences", "2") == 1
    assert rows(tmp_path / "e", "generations")
    capsys.readouterr()
    assert served(tiny_base, tmp_path, [float32]) == 2
    assert "it computes in float32, this evaluation needs bfloat16" in capsys.readouterr().err


def test_what_servers_have_begun_no_engine_here_goes_on_with(serving, tiny_base, tmp_path, capsys):
    assert served(tiny_base, tmp_path, [serving()]) == 0
    assert evaluate(tiny_base, tmp_path, *RULE) == 2
    assert "engine: 'vllm servers' there, 'builtin' now" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings, why",
    [
        (["--servers", "http://a:8000", "--ranks", "2"], "--servers draw in their place: leave one of them"),
        (["--servers", "http://"], "--servers needs addresses as http://host:8000, got 'http://'"),
        (["--servers", "nowhere.txt"], "--servers needs addresses as http://host:8000, or a file of them: "),
        (["--server_key_file", "key"], "--server_key_file is the key of servers: add --servers"),
        (["--servers", "http://a:8000", "--server_key_file", "no.txt"], "--server_key_file no.txt: "),
        (["--servers", "http://a:8000", "--server_start_s", "0"], "--server_start_s must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(capsys, settings, why):
    assert main(["m", *settings]) == 2
    assert why in capsys.readouterr().err


# What happens to them.


@pytest.mark.parametrize("tells_labels", [True, False])
def test_weights_that_are_written_meanwhile_end_it_and_no_response_of_theirs_is_kept(
    serving, tiny_base, tmp_path, capsys, tells_labels
):
    server = serving()
    server.tells_labels = tells_labels
    server.before_answer = lambda count: written(server) if count > 20 else None
    assert served(tiny_base, tmp_path, [server], "--max_sequences", "2") == 1
    said = capsys.readouterr().err
    assert f"fastgrpo: stopped: server {server.url}: a trainer has written its weights" in said
    assert "the same command goes on from here" in said
    kept = rows(tmp_path / "e", "generations")
    assert len(kept) <= 20

    another = serving()
    assert served(tiny_base, tmp_path, [another], "--max_sequences", "2") == 0
    whole = rows(tmp_path / "e", "generations")
    assert len(whole) == 32 and len(another.of(GENERATE)) == 32 - len(kept)
    assert all(row in whole for row in kept)


def test_weights_that_are_written_while_nothing_has_ended_are_noticed(serving, tiny_base, tmp_path, capsys):
    server = serving()
    server.hold(GENERATE)
    with meanwhile(lambda: server.of(GENERATE), lambda: written(server)):
        assert served(tiny_base, tmp_path, [server]) == 1
    assert "a trainer has written its weights" in capsys.readouterr().err


def test_what_a_server_had_that_dies_is_drawn_by_another(serving, tiny_base, tmp_path, warnings):
    dies, lives = serving(), serving()
    dies.hold(GENERATE)
    with meanwhile(lambda: dies.of(GENERATE), dies.die):
        assert served(tiny_base, tmp_path, [dies, lives]) == 0
    assert len(rows(tmp_path / "e", "generations")) == 32 == len(lives.of(GENERATE))
    assert any(text.startswith(f"fastgrpo: server {dies.url} was lost: ") for text in warnings)


def test_without_the_last_it_ends_after_its_time_and_goes_on_when_there_is_one(serving, tiny_base, tmp_path, capsys):
    server = serving()
    server.before_answer = lambda count: server.hold(GENERATE) if count > 20 else None
    with meanwhile(lambda: GENERATE in server._held, server.die):
        assert served(tiny_base, tmp_path, [server], "--max_sequences", "2", "--server_start_s", "0.5") == 1
    said = capsys.readouterr().err
    assert "fastgrpo: stopped: no server was there for" in said and "(--server_start_s 0.5)" in said
    kept = len(rows(tmp_path / "e", "generations"))
    assert 0 < kept < 32
    server.release(GENERATE)
    server.before_answer = lambda count: None
    server.asked.clear()
    server.come()
    assert served(tiny_base, tmp_path, [server]) == 0
    assert len(server.of(GENERATE)) == 32 - kept and len(rows(tmp_path / "e", "generations")) == 32


def test_one_that_does_not_answer_is_waited_for_and_others_begin(serving, tiny_base, tmp_path, warnings):
    late, there = serving(), serving()
    late.die()
    assert served(tiny_base, tmp_path, [late, there]) == 0
    assert any(f"waiting for server {late.url}: Cannot connect to host" in text for text in warnings)
    with meanwhile(lambda: len(warnings) >= 2, late.come):
        assert served(tiny_base, tmp_path, [late], "--name", "f") == 0
    assert len(late.of(GENERATE)) == 32 == len(there.of(GENERATE))
