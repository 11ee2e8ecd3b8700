"""The layer rule of docs/architecture.md: a file imports only from lower layers; neighbours do not know each other."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

LAYERS = [
    {"fastgrpo_kernels", "fastgrpo.config", "fastgrpo.types", "fastgrpo.metrics", "fastgrpo.watchdog"},
    {
        "fastgrpo.data", "fastgrpo.rewards", "fastgrpo.advantages", "fastgrpo.objective", "fastgrpo.packing",
        "fastgrpo.attention", "fastgrpo.ranks", "fastgrpo.report", "fastgrpo.run_folder", "fastgrpo.dynamic_sampling",
        "fastgrpo.shaping", "fastgrpo.display",
    },
    {"fastgrpo.algorithm"},
    {"fastgrpo.recipe", "fastgrpo.validate", "fastgrpo.scoring"},
    {"fastgrpo.shrink"},
    {"fastgrpo.policy", "fastgrpo.rollout"},
    {"fastgrpo.checkpoint", "fastgrpo.warmup", "fastgrpo.engines", "fastgrpo.probe"},
    {"fastgrpo.engine_process", "fastgrpo.evaluation"},
    {"fastgrpo.supervise"},
    {"fastgrpo.trainer", "fastgrpo.inputs", "fastgrpo.start_rollouts"},
    {"fastgrpo.run_schedule"},
    {"fastgrpo.run"},
    {"fastgrpo.train", "fastgrpo.evaluate"},
    {"fastgrpo.launch"},
    {"fastgrpo.__main__"},
    {"fastgrpo_recipes"},
]  # fmt: skip


def room_of(module: str) -> str | None:
    """The layered name that a module belongs to: ``fastgrpo.policy.model`` is of ``fastgrpo.policy``."""
    names = {name for layer in LAYERS for name in layer}
    parts = module.split(".")
    return next((n for i in range(len(parts), 0, -1) if (n := ".".join(parts[:i])) in names), None)


def layer_of(room: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if room in layer)


def modules() -> dict[str, Path]:
    found = {}
    for folder, package in (
        ("fastgrpo", "fastgrpo"),
        ("kernels/fastgrpo_kernels", "fastgrpo_kernels"),
        ("recipes", "fastgrpo_recipes"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {n for n in names if n.startswith(("fastgrpo", "fastgrpo_kernels"))}


def test_every_module_has_a_layer():
    assert [m for m in modules() if m != "fastgrpo" and room_of(m) is None] == []


def test_a_file_imports_only_from_lower_layers():
    wrong = []
    for module, path in modules().items():
        if module == "fastgrpo":
            continue
        room = room_of(module)
        for name in imports(path):
            other = room_of(name)
            if other is not None and other != room and layer_of(other) >= layer_of(room):
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_kernels_never_import_the_trainer():
    for module, path in modules().items():
        if module.startswith("fastgrpo_kernels"):
            assert not [n for n in imports(path) if n.split(".")[0] == "fastgrpo"], module


def test_there_is_no_package_named_kernels():
    """It would shadow Hugging Face's package of that name wherever the checkout is on sys.path."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
