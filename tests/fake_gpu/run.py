"""A command that sees GPUs which are not there: ``python -m tests.fake_gpu.run [--gpu h100] [--gpus 1] COMMAND``."""

import argparse
import os
import sys

from bench.gpu.processes import environment as importable
from bench.gpu.wheels import install
from tests.fake_gpu.environment import WHEELS, environment


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fake_gpu.run", description=__doc__)
    parser.add_argument("--gpu", default="h100", choices=("h100", "h200", "a800"))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    device = environment(options.gpu, options.gpus)
    device.pop("PYTHONPATH", None)  # `importable` adds this process's own behind the checkout's
    variables = importable(device)
    del variables["PYTORCH_ALLOC_CONF"]  # as a run has it, with the gaps that come with it
    variables.pop("TRITON_INTERPRET", None)  # which `tests` sets where it sees no GPU, as in this process
    if not options.command:
        parser.error("a command is needed")
    if WHEELS.is_dir():
        install(WHEELS)
    os.execvpe(options.command[0], options.command, variables)


if __name__ == "__main__":
    sys.exit(main())
