"""A pytest plugin: TRL's own tests with our adapter in every GRPOTrainer that they make (docs/adapters.md).

`--heads=trl` leaves the adapter out, which gives what the tests do without it, on the same models and data.
"""

import functools
import importlib
import os
import tempfile
from pathlib import Path

import pytest

from . import hub_stand_ins

adapted, refused = 0, 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--heads", choices=["ours", "trl"], default="ours", help="whose LM head GRPOTrainer uses")


def pytest_configure(config: pytest.Config) -> None:
    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    hub_stand_ins.make(Path(folder.name))
    os.chdir(folder.name)
    # Tests of another release ask for optional packages that this one does not know: they are not there.
    importlib.import_module("trl.import_utils").__getattr__ = _not_available
    if config.getoption("--heads") == "ours":
        adapt_every_trainer()


def _not_available(name: str):
    if name.startswith("is_") and name.endswith("_available"):
        return lambda: False
    raise AttributeError(name)


def adapt_every_trainer() -> None:
    import trl
    from fastgrpo_kernels.adapters.trl import use_linear_logprobs

    construct = trl.GRPOTrainer.__init__

    @functools.wraps(construct)
    def adapted_init(self, *args, **kwargs) -> None:
        global adapted, refused
        construct(self, *args, **kwargs)
        try:
            use_linear_logprobs(self)
        except ValueError as error:
            refused += 1
            pytest.skip(f"refused: {error}")
        adapted += 1

    trl.GRPOTrainer.__init__ = adapted_init


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.write_line(f"trainers with our head: {adapted}, refused: {refused}")
