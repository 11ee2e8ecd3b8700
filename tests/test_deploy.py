"""What deploy/ starts: its commands run against stand-ins that note their words, which the real parsers then read."""

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from fastgrpo import serve
from fastgrpo.recipe.arguments import asked_run, take_ranks
from fastgrpo.rollout.servers.start import named_servers
from tests.conftest import TINY

DEPLOY = Path(__file__).parents[1] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KEY = "a key of the tests"
ADDRESS = "10.77.0.1"

NOTE = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" > "$CALLS/${0##*/}_$BASHPID"
"""
STAND_INS = {
    "fastgrpo": NOTE + "exit 2  # a refusal: it is not started again",
    "torchrun": NOTE,
    "ip": f"#!/bin/bash\necho '2: eth0 inet {ADDRESS}/24 brd 10.77.0.255 scope global eth0'",
    "srun": """#!/bin/bash
printf '%s\\0' srun "$@" > "$CALLS/srun_$BASHPID"
while [[ $1 == --* ]]; do shift; done
for SLURM_NODEID in 0 1; do export SLURM_NODEID SLURM_LOCALID=0; "$@" || code=$?; done
exit ${code:-0}
""",
}


class Stage:
    """A folder of stand-ins for commands, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        self.calls.mkdir()
        (folder / "bin").mkdir()
        for name, text in STAND_INS.items():
            path = folder / "bin" / name
            path.write_text(text)
            path.chmod(0o755)

    def run(self, *command: str, **named: str) -> int:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "CALLS": str(self.calls), "VLLM_API_KEY": KEY, **named}
        return subprocess.run(command, env=environment, timeout=60).returncode

    def words(self, name: str) -> list[list[str]]:
        """Of every call of this command, without its name."""
        return [path.read_text().split("\0")[1:-1] for path in sorted(self.calls.glob(f"{name}_*"))]


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def require_serves(words: list[str]) -> list[str]:
    """The addresses that `fastgrpo serve` would listen at; its settings must be those of the run."""
    assert words[0] == "serve"
    options, settings = serve.parser().parse_known_args(words[1:])
    _, config, _ = asked_run(settings)
    assert config.rollout.max_staleness == 1
    return [f"http://{options.host}:{options.port}"]


def require_trains(words: list[str]) -> list[str]:
    """The servers of a run that a rank's words ask for."""
    _, config, _ = asked_run(words)
    assert config.rollout.engine == "vllm" and config.rollout.max_staleness == 1 and config.resume
    return list(config.rollout.servers)


def of_torchrun(words: list[str]) -> tuple[Any, list[str]]:
    asked = get_args_parser().parse_args(words)
    assert asked.module and asked.training_script == "fastgrpo.train" and asked.rdzv_backend == "c10d"
    assert asked.local_addr == ADDRESS and asked.rdzv_endpoint.endswith(":29400")
    return asked, asked.training_script_args


def test_the_job_of_slurm_starts_servers_and_trainers_that_know_each_other(stage, tmp_path):
    activate = tmp_path / "activate"
    activate.touch()
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    asked = {"RECIPE": str(TINY), "RUNS": str(tmp_path / "runs"), "TRAINERS": "1", "SERVERS": "2", "RANKS": "3"}
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    named = {**slurm, **asked, **gpus, "ACTIVATE": str(activate)}
    assert stage.run("bash", str(DEPLOY / "slurm.sbatch"), **named) == 0
    run = tmp_path / "runs" / "my_run"
    (served, *_) = stage.words("fastgrpo")
    listed = named_servers((str(run / "servers.txt"),))
    assert require_serves(served) == listed[:1] and listed == [f"http://{ADDRESS}:{port}" for port in (8000, 8001)]
    first, second = sorted(stage.words("torchrun"), key=lambda words: "is_host=0" in words)
    (one, trained), (other, _) = of_torchrun(first), of_torchrun(second)
    assert (one.rdzv_conf, other.rdzv_conf, one.nproc_per_node) == ("is_host=1", "is_host=0", "3")
    assert require_trains(trained) == [str(run / "servers.txt")]


def test_the_key_of_slurms_job_is_made_once_and_is_on_no_command_line(stage, tmp_path):
    activate = tmp_path / "activate"
    activate.touch()
    named = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8", "TRAINERS": "1"}
    named |= {"RECIPE": str(TINY), "RUNS": str(tmp_path / "runs"), "ACTIVATE": str(activate)}
    path, keys = tmp_path / "runs" / "my_run" / "servers.key", set()
    for _ in range(2):
        assert stage.run("bash", str(DEPLOY / "slurm.sbatch"), **named) == 0
        keys.add(path.read_text().strip())
    (key,) = keys
    assert len(key) == 64 and stat.S_IMODE(path.stat().st_mode) == 0o600
    called = [words for name in ("srun", "fastgrpo", "torchrun") for words in stage.words(name)]
    assert called and not any(key in word for words in called for word in words)


def container(document: Any) -> Any:
    (found,) = document["spec"]["template"]["spec"]["containers"]
    return found


def test_the_pods_of_kubernetes_start_servers_and_trainers_that_know_each_other(stage, tmp_path):
    found = [d for path in sorted(KUBERNETES.glob("*.yaml")) for d in documents(path)]
    of = {(d["kind"], d["metadata"]["name"]): d for d in found}
    settings = {**of["ConfigMap", "fastgrpo"]["data"], "RECIPE": str(TINY)}
    servers, trainers = of["StatefulSet", "fastgrpo-server"], of["Job", "fastgrpo-trainer"]
    for document in (servers, trainers):
        named = {e["name"]: e["value"] for e in container(document)["env"] if "value" in e}
        told = {e["name"] for e in container(document)["env"]}
        assert {"POD_IP", "VLLM_API_KEY"} <= told and "VLLM_API_KEY" not in named
        command = [*container(document)["command"], *container(document)["args"]]
        stage.run(*command, **settings, **named, POD_IP=ADDRESS, JOB_COMPLETION_INDEX="0")
    ((served,), (launched,)) = stage.words("fastgrpo"), stage.words("torchrun")
    assert require_serves(served) == [f"http://{ADDRESS}:8000"]
    asked, trained = of_torchrun(launched)
    assert int(asked.nnodes) == trainers["spec"]["completions"] == trainers["spec"]["parallelism"]
    assert int(asked.nproc_per_node) == container(trainers)["resources"]["limits"]["nvidia.com/gpu"]
    assert asked.rdzv_conf == "is_host=1,join_timeout=1800"
    (volume,) = (v for v in trainers["spec"]["template"]["spec"]["volumes"] if "configMap" in v)
    (mount,) = (m for m in container(trainers)["volumeMounts"] if m["name"] == volume["name"])
    ((name, listed),) = of["ConfigMap", volume["configMap"]["name"]]["data"].items()
    assert require_trains(trained) == [f"{mount['mountPath']}/{name}"]
    service, count = servers["spec"]["serviceName"], servers["spec"]["replicas"]
    assert listed.split() == [f"http://fastgrpo-server-{i}.{service}:8000" for i in range(count)]
    assert container(servers)["readinessProbe"]["httpGet"] == {"path": "/health", "port": 8000}


def test_the_services_of_compose_know_each_other(stage):
    services = documents(DEPLOY / "compose.yaml")[0]["services"]
    addresses = [f"http://{name}:8000" for name in services if name.startswith("server")]
    for name, service in services.items():
        # As compose reads it: ${NAME:-default} of the environment, and $$ is a dollar.
        named = {k: re.sub(r"\$\{\w+:-(.*)\}", r"\1", v) for k, v in service["environment"].items()}
        assert named.pop("VLLM_API_KEY").startswith("${VLLM_API_KEY:?")
        command = [word.replace("$$", "$") for word in service["command"]]
        stage.run(*command, **{**named, "RECIPE": str(TINY)})
        (words,) = stage.words("fastgrpo")
        for call in stage.calls.iterdir():
            call.unlink()
        if name == "trainer":
            devices = service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
            assert words[0] == "train"
            ranks, trained = take_ranks(words[1:])
            assert ranks == len(devices) and require_trains(trained) == addresses
        else:
            assert require_serves(words) == ["http://0.0.0.0:8000"]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_an_image_has_all_that_the_two_packages_are_built_from(name):
    text = (DEPLOY / name).read_text()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()}
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "kernels", "fastgrpo", "recipes"} <= copied
    assert all((DEPLOY.parent / word).exists() for word in copied)
