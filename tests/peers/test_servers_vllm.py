"""Runs whose responses real vLLM servers draw: which tokens they train on, and what harms them."""

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgrpo.rollout.servers.drawn import Drawn
from tests.conftest import TINY
from tests.peers.server_processes import KEY, ServerProcess
from tests.run.accidents import (
    Launch,
    assert_every_prompt_counts_once,
    figures,
    records,
    watched,
    with_base,
)
from tests.run.test_run import weights_of

pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: `make test-full`")
pytestmark = pytest.mark.peers

ROUTES = ("generate", "join", "receive")
OF_SAMPLER = ("rollout_kl", "logprob_diff")  # figures with the rounding of batches that are never twice the same
SMALL_STEPS = [
    "--data.prompts_per_step", "2", "--optimizer.updates_per_step", "1", "--checkpoint.every_steps", "0",
    "--optimizer.learning_rate", "1e-5",
]  # fmt: skip
TWO_AHEAD = ["--rollout.max_staleness", "2", "--objective.correction", "truncate"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[list[ServerProcess]]:
    """Two servers that are ready."""
    folder = tmp_path_factory.mktemp("servers")
    found = [ServerProcess(TINY, with_base(folder / str(i), tiny_base), folder / f"{i}.log") for i in range(2)]
    for server in found:
        server.start()
    for server in found:
        server.wait_until_ready()
    yield found
    for server in found:
        server.kill()


def launched(runs: Path, servers: Any, *settings: str, **options: Any) -> Launch:
    """A run that samples with these servers, or those that a file lists."""
    named = [str(servers)] if isinstance(servers, Path) else [s.url for s in servers]
    return Launch(runs, "--rollout.engine", "vllm", "--rollout.servers", *named, *settings, **options)


def run(runs: Path, servers: Any, *settings: str, **options: Any) -> Path:
    """The folder of such a run, which ended well."""
    launch = launched(runs, servers, *settings, **options)
    assert launch.wait() == 0, launch.printed
    launch.assert_nobody_is_left()
    return launch.folder


def test_without_the_key_a_server_tells_its_health_alone(servers):
    def status(path: str) -> int:
        request = urllib.request.Request(servers[0].url + path, b"{}", {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert servers[0].answers()
    assert {status(f"/inference/{path}") for path in ("v1/generate", *(f"fastgrpo/{r}" for r in ROUTES))} == {401}
    assert {status(path) for path in ("/invocations", "/v1/completions", "/collective_rpc", "/pause")} == {404}


def asked(server: ServerProcess, path: str, **others: Any) -> tuple[int, bytes]:
    """Status and body of the answer to a request for eight tokens, some of whose words are others."""
    params = {"max_tokens": 8, "seed": 5, "logprobs": 0, "ignore_eos": True, "detokenize": False}
    body = {"token_ids": [5, 6, 7], "cache_salt": "salt", "sampling_params": params} | others
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_our_route_draws_what_vllms_own_draws(servers):
    status, body = asked(servers[0], "/inference/fastgrpo/generate")
    theirs = json.loads(asked(servers[0], "/inference/v1/generate")[1])["choices"][0]
    drawn = Drawn.of_bytes(body)
    assert status == 200 and drawn.ids.tolist() == theirs["token_ids"] and len(drawn.ids) == 8
    assert drawn.logprobs is not None
    assert drawn.logprobs.tolist() == pytest.approx([t["logprob"] for t in theirs["logprobs"]["content"]], abs=1e-6)
    assert [span["version"] for span in theirs["weight_versions"]] == [label for _, label in drawn.spans]
    assert drawn.finish_reason == theirs["finish_reason"] == "length"


@pytest.mark.parametrize(
    "others, message",
    [
        ({"token_ids": []}, "at least 1 item"),
        ({"token_ids": [5, -1]}, "greater than or equal to 0"),
        ({"token_ids": [5, 10**6]}, "Token id 1000000 is out of vocabulary"),
        ({"token_ids": [5] * 10**4}, "longer than the maximum model length"),
        ({"sampling_params": {"temperature": -1.0}}, "temperature must be non-negative"),
    ],
)
def test_a_wrong_request_is_refused_in_words_and_does_no_harm(servers, others, message):
    status, body = asked(servers[0], "/inference/fastgrpo/generate", **others)
    assert status == 400 and message in json.loads(body)["error"]["message"]
    assert asked(servers[0], "/inference/fastgrpo/generate")[0] == 200


def test_a_seed_gives_the_same_run_twice(servers, tmp_path, tiny_base):
    first, second = (run(with_base(tmp_path / n, tiny_base), servers, "--steps", "6", trainers=2) for n in "ab")

    def of_policy(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if not k.startswith(OF_SAMPLER)} for r in figures(folder)]

    assert of_policy(first) == of_policy(second)
    theirs = weights_of(second, 6)
    assert all(torch.equal(weight, theirs[name]) for name, weight in weights_of(first, 6).items())
    assert max(abs(r["rollout_kl"]) for r in records(first)) < 1e-5


@pytest.mark.parametrize("settings, bound, num_steps", [(["--rollout.max_staleness", "1"], 1, 12), (TWO_AHEAD, 2, 30)])
def test_no_token_is_ever_further_behind_than_allowed(servers, tmp_path, tiny_base, settings, bound, num_steps):
    """By the version of every token, as its server noted it."""
    runs = with_base(tmp_path, tiny_base)
    folder = run(runs, servers, "--steps", str(num_steps), *SMALL_STEPS, *settings)
    steps = watched(folder)
    staleness = [line["step"] - 1 - line["oldest"] for line in steps]
    assert len(steps) == num_steps and 0 < max(staleness) <= bound
    assert all(line["newest"] <= line["step"] - 1 for line in steps)
    assert staleness == [r["staleness_max"] for r in records(folder)]
    changed = sum(line["num_changed"] for line in steps)
    assert changed > 0 if bound == 2 else changed == 0  # weights were replaced under running responses
    assert_every_prompt_counts_once(folder)


def test_servers_that_die_hang_come_and_go_lose_no_prompt(servers, tmp_path, tiny_base):
    """And neither does a trainer that is killed and continued."""
    first, second = servers
    third = ServerProcess(TINY, with_base(tmp_path / "third", tiny_base), tmp_path / "third.log")
    third.start()
    listed = tmp_path / "servers.txt"
    listed.write_text(f"{first.url}\n{second.url}\n")
    settings = ["--steps", "60", "--checkpoint.every_steps", "10", *TWO_AHEAD, "--deadline.stall_s", "4"]
    settings += ["--deadline.sync_s", "8"]
    runs = with_base(tmp_path / "runs", tiny_base)
    launch = launched(runs, listed, *settings, trainers=2, accidents=[(52, "update", "SIGKILL", "trainer 1")])

    def at(step: int) -> None:
        assert launch.wait(lambda: launch.last_step >= step) is None, launch.printed

    def when(words: str, count: int = 1) -> None:
        assert launch.wait(lambda: launch.printed.count(words) >= count) is None, launch.printed

    at(4)
    first.kill()
    when(f"server {first.url} was lost")
    first.start()  # on the same port, at its leisure
    at(10)
    second.send(signal.SIGSTOP)
    when(f"server {second.url} was lost")
    second.kill()
    second.start()
    third.wait_until_ready()
    listed.write_text(f"{first.url}\n{second.url}\n{third.url}\n")
    at(30)
    third.send(signal.SIGSTOP)
    when(f"server {third.url} was lost")
    third.send(signal.SIGCONT)  # it comes back with what it had, and gets the current weights
    at(40)
    third.kill()
    listed.write_text(f"{first.url}\n{second.url}\n")
    when(f"server {third.url} is not named any more")
    assert launch.wait() == 128 + signal.SIGKILL, launch.printed
    resumed = launched(runs, listed, *settings, "--resume", trainers=3)
    assert resumed.wait() == 0, resumed.printed
    assert [r["step"] for r in records(resumed.folder)] == list(range(1, 61))
    assert_every_prompt_counts_once(resumed.folder)
    assert max(r["staleness_max"] for r in records(resumed.folder)) == 2


OWN = ["--rollout.engine", "vllm", "--rollout.kv_cache_gib", "0.25"]


def test_a_launchs_own_server_is_started_again_and_one_loss_too_many_ends_the_run(tmp_path, tiny_base):
    launch = Launch(
        with_base(tmp_path, tiny_base), "--rollout.max_engine_restarts", "1", "--steps", "50", *OWN, samplers=1,
        accidents=[(3, "update", "SIGKILL", "server 0"), (9, "update", "SIGKILL", "server 0")],
    )  # fmt: skip
    assert launch.wait() == 1, launch.printed
    printed = launch.printed.replace("\n", " ")
    assert [r["engine_restarts"] for r in records(launch.folder)][-1] == 1 and launch.last_step >= 8
    assert "was lost" in printed and "more than --rollout.max_engine_restarts allows" in printed
    assert "The last checkpoint is" in printed and "go on with --resume" in printed
    assert (launch.folder / "engines" / "server_0.log").exists()
    launch.assert_nobody_is_left()


def test_a_run_that_the_first_rank_refuses_ends_its_samplers_too(tmp_path, tiny_base):
    launch = Launch(with_base(tmp_path, tiny_base), *OWN, "--data.train", "nowhere.parquet", samplers=1)
    assert launch.wait() == 2, launch.printed
    assert launch.printed.count("does not exist") == 1
    launch.assert_nobody_is_left()
