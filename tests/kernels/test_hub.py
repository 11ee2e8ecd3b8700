"""The package as Hugging Face's `kernels` loads it, beside the one that is imported by name, in one process."""

import runpy
from pathlib import Path

import fastgrpo_kernels
import pytest
import torch
from fastgrpo_kernels.dispatch import backend_for

from tests.kernels.readme import block

kernels = pytest.importorskip("kernels.load", reason="the environment .venv-hub has it")
pytestmark = pytest.mark.peers
KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    runpy.run_path(str(KERNELS / "hub.py"))["main"](folder)
    return folder


def loss_and_gradients(package, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator, dtype=dtype).requires_grad_() for n in (40, 100))
    targets, old = torch.randint(100, (40,), generator=generator), -torch.rand(40, generator=generator) * 5
    output = package.linear_grpo(hidden, weight, targets, old, torch.ones(40), None, 40, package.Objective())
    output.loss.backward()
    return [output.loss.detach(), hidden.grad, weight.grad]


def test_build_toml_is_what_their_builder_reads():
    from kernels._rust import Build

    assert {str(b) for b in Build.open(KERNELS).general.backends} == {"cpu", "cuda"}
    assert (KERNELS / "torch-ext" / "fastgrpo_kernels" / "_ops.py").is_file()


def test_the_best_variant_is_loaded_and_computes_beside_the_imported_package(out):
    loaded = kernels.get_local_kernel(out)
    assert loaded is not fastgrpo_kernels and loaded.linear_grpo is not fastgrpo_kernels.linear_grpo
    assert "stable-abi210-cpu" in loaded.__file__ and (Path(loaded.__file__).parent / "_native.so").exists()
    assert backend_for(torch.device("cpu")) == "native"  # of the imported one
    for ours, theirs in zip(loss_and_gradients(fastgrpo_kernels), loss_and_gradients(loaded), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:fastgrpo_kernels runs in plain torch")
def test_a_variant_without_the_library_computes_beside_it_too(out):
    plain = kernels.get_local_kernel(out / "build" / "torch-cpu")
    native = kernels.get_local_kernel(out)
    assert plain.__name__ != native.__name__
    for ours, theirs in zip(loss_and_gradients(native), loss_and_gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_every_build_has_ops_of_its_own(out):
    spaces = {schema.name.split("::")[0] for schema in torch._C._jit_get_all_schemas() if "fastgrpo" in schema.name}
    assert {"fastgrpo", "fastgrpo_native"} <= spaces
    assert len([s for s in spaces if s.startswith("_fastgrpo_kernels_cpu_")]) >= 2


def test_it_compiles_to_one_graph(out):
    loaded = kernels.get_local_kernel(out)
    advantages = torch.compile(lambda rewards: loaded.group_advantages(rewards, 4), fullgraph=True, backend="eager")
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert torch.equal(advantages(rewards), fastgrpo_kernels.group_advantages(rewards, 4))


def test_the_lines_of_the_kernels_page_run(out):
    namespace = {"OUT": out, "torch": torch}
    exec(block("From Hugging Face's hub"), namespace)
    assert namespace["advantages"].sum().abs() < 1e-6
