"""The layer rule of docs/architecture.md: a file imports only from lower layers; neighbours do not know each other."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

LAYERS = [
    {"fastgrpo_kernels", "fastgrpo.types", "fastgrpo.json_lines", "fastgrpo.codec", "fastgrpo.command_line"},
    {"fastgrpo.config", "fastgrpo.pages"},
    {"fastgrpo.data", "fastgrpo.rewards", "fastgrpo.models", "fastgrpo.ranks", "fastgrpo.report"},
    {"fastgrpo.algorithm", "fastgrpo.track"},
    {"fastgrpo.recipe", "fastgrpo.policy", "fastgrpo.rollout"},
    {"fastgrpo.proof"},
    {"fastgrpo.evaluation"},
    {"fastgrpo.trainer"},
    {"fastgrpo.run"},
    {"fastgrpo.train", "fastgrpo.evaluate", "fastgrpo.serve", "fastgrpo.inspection"},
    {"fastgrpo.__main__"},
    {"fastgrpo_recipes"},
]
PACKAGES = {"fastgrpo": "fastgrpo", "kernels/fastgrpo_kernels": "fastgrpo_kernels", "recipes": "fastgrpo_recipes"}


def _modules() -> dict[str, Path]:
    found = {}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


MODULES = _modules()


def room_of(module: str) -> str:
    """The package or file that has a layer: ``fastgrpo.policy.policy`` is of ``fastgrpo.policy``."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "fastgrpo" else 1])


def layer_of(room: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if room in layer)


def imports(path: Path) -> set[str]:
    """The modules that a file names in its imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = absolute(path, node)
            inside = {alias.name: f"{module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else module for name in inside.values()}
    return names


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module that the statement names. In the kernels alone it is relative: the hub loads them by any name."""
    kernels = ROOT / "kernels"
    of_kernels = path.is_relative_to(kernels)
    assert node.level == 0 or of_kernels, f"{path}: relative import"
    if node.level == 0:
        assert not of_kernels or str(node.module).split(".")[0] != "fastgrpo_kernels", f"{path}: absolute import"
        return str(node.module)
    folder = path.relative_to(kernels).parts[:-1]
    return ".".join([*folder[: len(folder) + 1 - node.level], *([node.module] if node.module else [])])


def imports_of_ours(path: Path) -> set[str]:
    return {n for n in imports(path) if n.split(".")[0] in PACKAGES.values()}


def test_every_module_has_a_layer():
    rooms = {room_of(m) for m in MODULES} - {"fastgrpo"}
    assert rooms == set().union(*LAYERS)


def test_a_file_imports_only_from_lower_layers():
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imports_of_ours(path) - {"fastgrpo"}
        if room_of(name) != room_of(module) and layer_of(room_of(name)) >= layer_of(room_of(module))
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle():
    graph = {m: imports_of_ours(path) for m, path in MODULES.items()}
    while leaves := {m for m, needed in graph.items() if not needed}:
        graph = {m: needed - leaves for m, needed in graph.items() if m not in leaves}
    assert graph == {}


def test_rooms_have_few_doors():
    arrows = {(room_of(m), room_of(n)) for m, path in MODULES.items() for n in imports_of_ours(path)}
    assert len({(a, b) for a, b in arrows if a != b}) <= 125
    assert len([p for p in (ROOT / "fastgrpo").iterdir() if p.is_file()]) <= 9


def test_an_engine_is_known_to_the_list_of_engines_alone():
    """But for vLLM's servers, which are the same engine in processes of their own."""
    allowed = {"fastgrpo.rollout.engines", "fastgrpo.rollout.weight_sync.vllm_worker"}
    allowed |= {m for m in MODULES if m.startswith("fastgrpo.rollout.servers")}
    for engine in ("fastgrpo.rollout.builtin", "fastgrpo.rollout.vllm"):
        outside = {m: p for m, p in MODULES.items() if m.startswith("fastgrpo.") and not m.startswith(engine)}
        assert {m for m, p in outside.items() if any(n.startswith(engine) for n in imports(p))} <= allowed


def test_the_sync_of_weights_needs_torch_alone():
    package = "fastgrpo.rollout.weight_sync"
    of_vllm = f"{package}.vllm_worker"  # the public name of what lies with the vLLM engine
    needed = set().union(*(imports(p) for m, p in MODULES.items() if m.startswith(package) and m != of_vllm))
    assert {n.split(".")[0] for n in needed if not n.startswith(package)} - sys.stdlib_module_names == {"torch"}


def test_kernels_never_import_the_trainer():
    for module, path in MODULES.items():
        if module.startswith("fastgrpo_kernels"):
            assert not [n for n in imports(path) if n.split(".")[0] == "fastgrpo"], module


def test_there_is_no_package_named_kernels():
    """It would shadow Hugging Face's package of that name wherever the checkout is on sys.path."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_what_a_run_imports_is_among_its_requirements():
    """Tests see more packages than a newcomer has. vLLM's engine and trackers are optional and import their own."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    required = {re.split(r"[^\w-]", name)[0].replace("-", "_") for name in named}
    optional = ("fastgrpo.rollout.vllm", "fastgrpo.track", "fastgrpo.rollout.weight_sync.vllm_worker")
    for module, path in MODULES.items():
        at_once = {
            name.split(".")[0]
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([str(node.module)] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        if module.startswith("fastgrpo.") and not module.startswith(optional):
            assert at_once - sys.stdlib_module_names - set(PACKAGES.values()) <= required, module
