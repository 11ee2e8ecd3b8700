"""``fastgrpo serve``: a vLLM server that a run samples with."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fastgrpo.command_line import exit_codes
from fastgrpo.ranks import choose_device
from fastgrpo.recipe.arguments import asked_run
from fastgrpo.rollout.servers.command import server_command, server_environment
from fastgrpo.rollout.servers.start import server_key

USAGE = """\
Start a vLLM server with which a run of this recipe samples: give the same settings to both, and its address to
`fastgrpo train RECIPE --rollout.engine vllm --rollout.servers http://HOST:PORT`. What else is said after the recipe are
its settings, as `fastgrpo train --help` lists them. With VLLM_API_KEY in the environment, or
--rollout.server_key_file, only those who know the key may ask it for anything.
"""
LOOK_S = 1.0


def parser() -> argparse.ArgumentParser:
    """Of what is no setting of the run."""
    parser = argparse.ArgumentParser("fastgrpo serve", description=USAGE, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--print", action="store_true", help="print the command, and do not start it")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Becomes the server, which ends with Ctrl-C. Returns an exit code where it cannot."""
    options, settings = parser().parse_known_args(arguments)
    try:
        _, config, _ = asked_run(settings)
        _wait_for(config.model.path, config.run_dir)
        on_cpu = choose_device(config.device).type == "cpu"
        words = server_command(config, options.host, options.port, on_cpu)
        named = server_environment(server_key(config.rollout.server_key_file), config, on_cpu)
    except ValueError as error:
        print(f"fastgrpo: {error}", file=sys.stderr)
        return exit_codes.REFUSED
    if options.print:
        shown = [f"{name}={value}" for name, value in named.items() if name != "VLLM_API_KEY"]
        print(shlex.join([*shown, *words]))
        return exit_codes.DONE
    os.execve(words[0], words, {**os.environ, **named})


def _wait_for(model: str, run_dir: str) -> None:
    """Waits for a base that the run itself makes, in its folder."""
    path = Path(model)
    if not path.is_relative_to(run_dir) or (path / "config.json").exists():
        return
    print(f"fastgrpo: waiting for the run to make its base model, {model}", flush=True)
    while not (path / "config.json").exists():
        time.sleep(LOOK_S)
