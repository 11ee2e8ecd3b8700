"""Values and gradients at the real shape against float64.

A time does not show a wrong grid, a group's remainder or a product beyond 32 bits. So every row and every column of dX
and dW is compared, in every way that the device can run the head; with one chunk of all rows the buffer of logits has
more than 2^31 elements. The float64 oracle is computed on the same device, in slices of rows.

The rule for gradients is that of the tests: at most twice the error of plain torch in bfloat16 (rounded logits, then
float32, rounded gradient of the logits), plus a floor. For values it would allow an error of 0.1, so they have a bound
of their own.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from fastgrpo_kernels import Objective, dispatch, head, linear_grpo, linear_logprobs, reference
from fastgrpo_kernels.primitives import statistics_dtype
from torch import Tensor

from bench.harness import (
    Row,
    add_only,
    chosen,
    exit_code,
    free_cached,
    merged,
    print_table,
    read_results,
    write_results,
)
from bench.kernel_subjects import FLOORS
from bench.side_by_side import attempted, few, run_workers

SHAPES = {"cpu": (256, 64, 4104), "cuda": (16384, 1536, 151936)}
DTYPE = torch.bfloat16
VALUE_BOUND = 1e-3
"""In nats, or for a loss with advantages of size 1: float32 accumulators give 1e-5, a rounded logit 3e-2."""
SLICE_ROWS = 256
GRADIENTS = {"grad_hidden": ("dX", "row", "column"), "grad_weight": ("dW", "vocabulary row", "column")}

Outcome = dict[str, Tensor]  # loss [], logprobs [T], entropies [T], grad_hidden [T, D], grad_weight [V, D]


@dataclass(frozen=True)
class Inputs:
    """A packed micro-batch before the LM head; tokens are clipped on both sides, and advantages have both signs."""

    hidden: Tensor  # [T, D]
    weight: Tensor  # [V, D]
    target_ids: Tensor  # [T] int64, with the edges of the vocabulary
    old_logprobs: Tensor  # [T] float32
    advantages: Tensor  # [T]
    upstream: Tensor  # [T] gradient of the logprobs, for tasks whose result they are
    upstream_entropy: Tensor  # [T] gradient of the entropies

    @classmethod
    def random(cls, num_tokens: int, width: int, vocabulary: int, device: torch.device) -> "Inputs":
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=generator)

        hidden, weight = normal(num_tokens, width).to(DTYPE), (normal(vocabulary, width) * 2 * width**-0.5).to(DTYPE)
        target_ids = torch.randint(vocabulary, (num_tokens,), device=device, generator=generator)
        edges = torch.tensor(_edges(vocabulary)[:num_tokens], device=device)
        target_ids[: len(edges)], target_ids[-len(edges) :] = edges, edges
        # Ratios are far within the clip or far beyond it, so that rounding decides nothing.
        small, far = torch.rand(2, num_tokens, device=device, generator=generator)
        log_ratios = torch.where(far < 0.1, torch.where(far < 0.05, -0.6, 0.6), 0.1 * small - 0.05)
        by_response = torch.linspace(-1.5, 1.5, 8, device=device)
        return cls(
            hidden, weight, target_ids, _exact_logprobs(hidden, weight, target_ids).float() - log_ratios,
            by_response[torch.arange(num_tokens, device=device) * 8 // num_tokens],
            normal(num_tokens) / num_tokens, normal(num_tokens) / num_tokens,
        )  # fmt: skip

    def tokens(self, rows: slice, dtype: torch.dtype) -> "Inputs":
        """The inputs of some tokens: hidden in the dtype, other floats in float32 or wider, the weight unchanged."""
        wide = statistics_dtype(dtype)
        names = ("old_logprobs", "advantages", "upstream", "upstream_entropy")
        floats = {name: getattr(self, name)[rows].to(wide) for name in names}
        return replace(self, hidden=self.hidden[rows].to(dtype), target_ids=self.target_ids[rows], **floats)

    @property
    def num_tokens(self) -> int:
        return len(self.target_ids)

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden.detach().requires_grad_(), self.weight.detach().requires_grad_()


def _edges(vocabulary: int) -> list[int]:
    """The first id and the last, and the ids on both sides of the first and the last border between tiles."""
    borders = {b for size in (64, 128, 256) for b in (size, (vocabulary - 1) // size * size)}
    ids = {0, vocabulary - 1, vocabulary - 2, *borders, *(b - 1 for b in borders)}
    return sorted((i for i in ids if 0 <= i < vocabulary), reverse=True)


def _slices(num_rows: int) -> Iterator[slice]:
    return (slice(i, min(i + SLICE_ROWS, num_rows)) for i in range(0, num_rows, SLICE_ROWS))


def _exact_logprobs(hidden: Tensor, weight: Tensor, target_ids: Tensor) -> Tensor:  # [T] float64
    exact = weight.double()
    parts = [
        reference.logprobs_from_logits(hidden[rows].double() @ exact.T, target_ids[rows])[0]
        for rows in _slices(len(hidden))
    ]
    return torch.cat(parts)


# The tasks: what is differentiated, and its definition.


@dataclass(frozen=True)
class Task:
    """A value to differentiate. ``value`` takes the logprobs and entropies of some rows; over all rows it adds up."""

    name: str
    value: Callable[[Inputs, int, Tensor, Tensor], Tensor]


def _loss(objective: Objective) -> Callable[[Inputs, int, Tensor, Tensor], Tensor]:
    return lambda x, num_tokens, logprobs, entropies: reference.grpo_loss(
        logprobs, x.old_logprobs, x.advantages, num_tokens, objective, entropy=entropies
    )


BONUS = Objective(entropy_coef=0.3)
LOSS = Task("loss", _loss(Objective()))
LOSS_AND_BONUS = Task("loss with a bonus for entropy", _loss(BONUS))
LOGPROBS = Task("logprobs", lambda x, _, logprobs, entropies: (logprobs * x.upstream).sum())
BOTH = Task(
    "logprobs and entropies",
    lambda x, _, logprobs, entropies: (logprobs * x.upstream + entropies * x.upstream_entropy).sum(),
)


def by_definition(inputs: Inputs, task: Task, dtype: torch.dtype) -> Outcome:
    """The outcome of a task by `fastgrpo_kernels.reference` and autograd, a slice of rows at a time.

    In float64 it is the oracle. In bfloat16 it is plain torch, which rounds logits and their gradient; dW is summed in
    float32 over the slices and rounded once, as in one matmul over all rows.
    """
    weight, wide = inputs.weight.to(dtype), statistics_dtype(dtype)
    outcome: Outcome = {
        "loss": torch.zeros((), dtype=wide, device=inputs.hidden.device),
        **{name: inputs.hidden.new_empty(inputs.num_tokens, dtype=wide) for name in ("logprobs", "entropies")},
        "grad_hidden": torch.empty_like(inputs.hidden, dtype=dtype),
        "grad_weight": torch.zeros_like(inputs.weight, dtype=wide),
    }
    for rows in _slices(inputs.num_tokens):
        own = inputs.tokens(rows, dtype)
        logits = (own.hidden @ weight.T).requires_grad_()
        logprobs, entropies = reference.logprobs_from_logits(logits.to(wide), own.target_ids)
        value = task.value(own, inputs.num_tokens, logprobs, entropies)
        (grad_logits,) = torch.autograd.grad(value, logits)
        outcome["loss"] += value.detach()
        outcome["logprobs"][rows], outcome["entropies"][rows] = logprobs.detach(), entropies.detach()
        outcome["grad_hidden"][rows] = grad_logits @ weight
        outcome["grad_weight"].addmm_(grad_logits.to(wide).T, own.hidden.to(wide))
    return outcome | {"grad_weight": outcome["grad_weight"].to(dtype)}


# The ways in which the head can be computed.


@dataclass(frozen=True)
class Way:
    name: str
    task: Task
    run: Callable[[Inputs], Outcome]
    block: Callable[[], AbstractContextManager[None]] = nullcontext


def ways(device: torch.device, num_tokens: int) -> list[Way]:
    """Every op with every first matmul or backend of the device."""
    blocks = _blocks(device)
    found = [
        Way(f"{name}, {block_name}", task, run, block)
        for block_name, block in blocks.items()
        for name, task, run in _ops(num_tokens)
    ]
    if device.type == "cuda":
        found.append(Way("linear_grpo, auto, no bfloat16 partial sums", LOSS, _grpo(), _exact_partial_sums))
    return found


def _blocks(device: torch.device) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    if device.type == "cuda":
        return {
            "auto": nullcontext,
            "tiles": lambda: head.first_matmul("triton"),
            "cuBLAS": lambda: head.first_matmul("cublas"),
        }
    native = {"native": lambda: dispatch.forced("native")} if dispatch.native_is_built() else {}
    return {**native, "plain": lambda: dispatch.forced("plain")}


def _ops(num_tokens: int) -> list[tuple[str, Task, Callable[[Inputs], Outcome]]]:
    return [
        ("linear_grpo", LOSS, _grpo()),
        ("linear_grpo with entropy", LOSS, _grpo(entropy=True)),
        ("linear_grpo with a bonus", LOSS_AND_BONUS, _grpo(BONUS)),
        ("linear_grpo in one chunk", LOSS, _grpo(chunk_tokens=num_tokens)),
        ("linear_logprobs forward", LOGPROBS, _scored(entropy=False)),
        ("linear_logprobs forward with entropy", LOGPROBS, _scored(entropy=True)),
        ("linear_logprobs", LOGPROBS, _logprobs),
        ("linear_logprobs with entropy", BOTH, _logprobs_and_entropies),
    ]


@contextmanager
def _exact_partial_sums() -> Iterator[None]:
    """A block in which cuBLAS does not split a long sum and add its parts in bfloat16."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_bf16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction, False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


def _present(**values: Tensor | None) -> Outcome:
    return {name: value.detach() for name, value in values.items() if value is not None}


def _grpo(objective: Objective | None = None, **options: Any) -> Callable[[Inputs], Outcome]:
    def run(x: Inputs) -> Outcome:
        leaves = x.leaves()
        out = linear_grpo(*leaves, x.target_ids, x.old_logprobs, x.advantages, None, x.num_tokens, objective, **options)
        of_hidden, of_weight = torch.autograd.grad(out.loss, leaves)
        return _present(
            loss=out.loss, logprobs=out.logprobs, entropies=out.entropy, grad_hidden=of_hidden, grad_weight=of_weight
        )

    return run


def _scored(entropy: bool) -> Callable[[Inputs], Outcome]:
    def run(x: Inputs) -> Outcome:
        with torch.no_grad():
            logprobs, entropies = linear_logprobs(x.hidden, x.weight, x.target_ids, entropy=entropy)
        return _present(logprobs=logprobs, entropies=entropies)

    return run


def _logprobs(x: Inputs) -> Outcome:
    leaves = x.leaves()
    logprobs, _ = linear_logprobs(*leaves, x.target_ids)
    of_hidden, of_weight = torch.autograd.grad(logprobs, leaves, x.upstream)
    return _present(logprobs=logprobs, grad_hidden=of_hidden, grad_weight=of_weight)


def _logprobs_and_entropies(x: Inputs) -> Outcome:
    leaves = x.leaves()
    logprobs, entropies = linear_logprobs(*leaves, x.target_ids, entropy=True)
    of_hidden, of_weight = torch.autograd.grad((logprobs, entropies), leaves, (x.upstream, x.upstream_entropy))
    return _present(logprobs=logprobs, entropies=entropies, grad_hidden=of_hidden, grad_weight=of_weight)


# Errors.


@dataclass(frozen=True)
class Error:
    """The error of a result, or of its row or column with the largest error."""

    size: float
    at: int | None = None


@dataclass(frozen=True)
class Oracle:
    """The exact outcome of a task, and the errors of plain torch, by the names of `errors`."""

    exact: Outcome
    plain: dict[str, Error]

    @classmethod
    def of(cls, inputs: Inputs, task: Task) -> "Oracle":
        exact = by_definition(inputs, task, torch.float64)
        exact["grad_weight"] = exact["grad_weight"].float()  # half the memory; the last bits do not matter
        return cls(exact, errors(by_definition(inputs, task, DTYPE), exact))


def errors(got: Outcome, exact: Outcome) -> dict[str, Error]:
    """The errors of each result.

    For values it is the largest difference. For gradients it is the norm of the difference divided by the norm, of the
    whole and of the worst row and column.
    """
    found: dict[str, Error] = {}
    for name, value in got.items():
        right = exact[name]
        assert value.shape == right.shape, f"{name} is {list(value.shape)}, needed {list(right.shape)}"
        if name in GRADIENTS:
            short, row, column = GRADIENTS[name]
            whole, by_row, by_column = _matrix_errors(value, right)
            found |= {short: whole, f"{short} {row}": by_row, f"{short} {column}": by_column}
        else:
            found[name] = _worst((value.double() - right.double()).abs().reshape(-1))
    return found


def _matrix_errors(got: Tensor, exact: Tensor) -> tuple[Error, Error, Error]:
    difference, exact = got.float() - exact.float(), exact.float()
    whole = Error(float(_norms(difference) / _norms(exact)))
    return whole, *(_worst(_norms(difference, dim) / _scales(_norms(exact, dim))) for dim in (1, 0))


def _norms(matrix: Tensor, dim: int | None = None) -> Tensor:
    return torch.linalg.vector_norm(matrix, dim=dim, dtype=torch.float64)


def _scales(norms: Tensor) -> Tensor:
    """The scale of each difference: the norm, or a thousandth of the others' for a clipped token with gradient 0."""
    return norms.clamp(min=1e-3 * float(norms.square().mean().sqrt()))


def _worst(differences: Tensor) -> Error:
    at = int(differences.argmax())  # the place of a NaN, if there is one
    return Error(float(differences[at]), at)


def bound(name: str, plain: Error) -> float:
    return 2 * plain.size + FLOORS[DTYPE] if name.startswith("d") else VALUE_BOUND


# Rows of the report.


def measured(way: Way, inputs: Inputs, oracle: Callable[[Task], Oracle]) -> Row:
    """A row: each error with plain torch's and its bound, and the reason of a failure or ""."""
    row: Row = {"name": way.name, "task": way.task.name, "errors": {}, "why_not": ""}

    def work() -> dict[str, Row]:
        found = oracle(way.task)
        with way.block():
            got = way.run(inputs)
        return {name: _compared(name, error, found.plain[name]) for name, error in errors(got, found.exact).items()}

    compared, row["why_not"] = attempted(work, inputs.hidden.device)
    row["errors"] = compared or {}
    wrong = [f"{name}: {_described(e)}" for name, e in row["errors"].items() if not e["within"]]
    row["why_not"] = row["why_not"] or "; ".join(wrong)
    return row


def _compared(name: str, error: Error, plain: Error) -> Row:
    most = bound(name, plain)
    return {"error": error.size, "at": error.at, "plain": plain.size, "bound": most, "within": error.size <= most}


def _described(error: Row) -> str:
    at = "" if error["at"] is None else f" at {error['at']}"
    return f"off by {error['error']:.2e}{at}, at most {error['bound']:.2e} (plain torch {error['plain']:.2e})"


def main(argv: Sequence[str]) -> int:
    """Compares all ways. Returns 1 if one fails or is wrong."""
    parser = _parser()
    options = parser.parse_args(argv)
    device, shape = torch.device(options.device), _shape(parser, options)
    every = ways(device, shape[0])
    names = [way.name for way in every]
    wanted = chosen(parser, options.only, names)
    if options.compile:
        return _compile([way for way in every if way.name in wanted], shape, device)
    if options.processes > 1:
        _compile_ahead(wanted, shape, options)
    kept = read_results("real_shape", device) if options.only else {}
    rows: list[Row] = kept.get("rows", []) if kept.get("shape") == list(shape) else []
    made, why_not = attempted(lambda: Inputs.random(*shape, device), device)
    if made is None:
        return exit_code("real_shape", {"the inputs": why_not})
    # Sorted by task, so that only one oracle is in memory.
    for task in dict.fromkeys(way.task for way in every if way.name in wanted):
        oracle = _once(made)
        for way in every:
            if way.task is task and way.name in wanted:
                rows = merged(rows, [measured(way, made, oracle)], names)
                print(_line(next(row for row in rows if row["name"] == way.name)), flush=True)
                _write(rows, shape, device)
        del oracle
        free_cached(device)
    _print(rows, shape)
    return exit_code("real_shape", {r["name"]: r["why_not"] for r in rows if r["why_not"] and r["name"] in wanted})


def _compile(chosen_ways: Sequence[Way], shape: Sequence[int], device: torch.device) -> int:
    """Runs each way once on few rows and columns, to fill Triton's cache; compares and writes nothing."""
    inputs = Inputs.random(*few(shape), device)
    for way in chosen_ways:
        with way.block():
            attempted(lambda way=way: way.run(inputs), device)  # one that fails here will fail again in its row
    return 0


def _compile_ahead(names: Sequence[str], shape: Sequence[int], options: argparse.Namespace) -> None:
    """Compiles in several processes: each kernel takes seconds of one core."""
    as_before = ["real_shape", "--device", options.device, "--shape", ",".join(map(str, shape)), "--compile"]
    shares = [names[i :: options.processes] for i in range(min(options.processes, len(names)))]
    run_workers([[*as_before, *(f"--only={name}" for name in share)] for share in shares], timeout_s=120.0)


def _once(inputs: Inputs) -> Callable[[Task], Oracle]:
    """A function that gives the oracle of a task, and computes it at its first use."""
    made: dict[str, Oracle] = {}

    def oracle(task: Task) -> Oracle:
        if task.name not in made:
            made[task.name] = Oracle.of(inputs, task)
        return made[task.name]

    return oracle


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench real_shape", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    shapes = ", ".join(f"{','.join(map(str, shape))} ({name})" for name, shape in SHAPES.items())
    parser.add_argument("--shape", help=f"T,D,V; default: {shapes}")
    parser.add_argument("--processes", type=int, default=1, help="how many compile ahead")
    parser.add_argument("--compile", action="store_true", help="run each way on few rows, and compare nothing")
    add_only(parser)
    return parser


def _shape(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[int, int, int]:
    if options.shape is None:
        return SHAPES[options.device]
    parts = options.shape.split(",")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        parser.error(f"--shape must be T,D,V, three whole numbers above 0, got {options.shape!r}")
    num_tokens, width, vocabulary = map(int, parts)
    return num_tokens, width, vocabulary


def _line(row: Row) -> str:
    if row["why_not"]:
        return f"WRONG  {row['name']}: {row['why_not']}"
    name, nearest = max(row["errors"].items(), key=lambda item: item[1]["error"] / item[1]["bound"])
    return f"ok     {row['name']}; nearest to its bound: {name}, {_described(nearest)}"


def _write(rows: list[Row], shape: Sequence[int], device: torch.device) -> None:
    wrong = sum(bool(row["why_not"]) for row in rows)
    headline = [["ways to compute the head that are off at the real shape", wrong, f"0 of {len(rows)}"]]
    results = {"shape": list(shape), "dtype": str(DTYPE).removeprefix("torch."), "rows": rows}
    write_results("real_shape", device, headline, results)


def _print(rows: list[Row], shape: Sequence[int]) -> None:
    columns = ("loss", "logprobs", "entropies", "dX", "dX row", "dX column", "dW", "dW vocabulary row", "dW column")
    table = []
    for row in rows:
        found = [row["errors"].get(name, {}).get("error") for name in columns]
        table.append([row["name"], *found, "NO" if row["why_not"] else "yes"])
    title = "T {:,}, D {:,}, V {:,}, bfloat16: errors against float64".format(*shape)
    print_table(title, ("way", *(name.removesuffix(" row") for name in columns), "within"), table)
