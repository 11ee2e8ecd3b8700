"""The memory of one update by arithmetic: which tensors exist at which time, counted from the model's shape."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from bench.shapes import Shape

Variant = Literal["padded_logits", "packed_logits", "packed_chunked"]
VARIANTS: tuple[Variant, ...] = ("padded_logits", "packed_logits", "packed_chunked")

MASTER_BYTES, OPTIMIZER_BYTES = 4, 8  # a parameter: float32, and AdamW's two moments


@dataclass(frozen=True)
class Case:
    """One micro-batch and how it is computed."""

    shape: Shape
    lengths: tuple[int, ...]  # tokens of each sequence
    prompt_tokens: int  # of each sequence, without loss
    head_chunk_tokens: int  # 0: what the head's op takes
    checkpointing: bool
    itemsize: int  # of the compute dtype: 2 for bfloat16, 4 for float32
    pads_for_attention: bool  # on CPU the packed variants pad each sequence for the attention alone

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def num_padded_tokens(self) -> int:
        return len(self.lengths) * max(self.lengths)

    @property
    def num_loss_tokens(self) -> int:
        """The number of response tokens. ``lengths`` are of the tokens that are read, without a response's last one."""
        return self.num_tokens - len(self.lengths) * (self.prompt_tokens - 1)


@dataclass(frozen=True)
class Bytes:
    """The terms of the peak of forward and backward pass, the optimizer's state, and the peaks."""

    weights: float  # float32 masters
    optimizer: float
    gradients: float  # float32, complete only at the end of the backward pass
    gathered: float  # embedding and head in the compute dtype, as FSDP holds them from forward to backward
    saved_activations: float  # of all layers, or their inputs under activation checkpointing
    one_layer: float  # recomputed, under activation checkpointing
    head: float  # logits and what is derived from them
    peak_at_head: float
    peak_at_layer: float
    peak_at_end: float

    @property
    def above_weights(self) -> float:
        return max(self.peak_at_head, self.peak_at_layer, self.peak_at_end)

    @property
    def peak(self) -> float:
        return self.weights + self.above_weights

    def as_gib(self) -> dict[str, float]:
        terms = {**asdict(self), "above_weights": self.above_weights, "peak": self.peak}
        return {f"{name}_gib": value / 2**30 for name, value in terms.items()}


def predict(case: Case, variant: Variant) -> Bytes:
    """Peak bytes of one micro-batch on one device.

    The peak is at one of three times: in the head, with the activations of all layers and the logits; in the first
    layer that is differentiated, which is recomputed if activations are checkpointed; or at the end, with all
    gradients.
    """
    shape, item = case.shape, case.itemsize
    rows = case.num_padded_tokens if variant == "padded_logits" else case.num_tokens
    layer = _layer_bytes(case, variant, rows)
    embedding = shape.vocabulary * shape.width
    gathered = (embedding * (1 if shape.tied else 2) + shape.width) * item
    saved = shape.num_layers * (rows * shape.width * item if case.checkpointing else layer)
    final = _norm_bytes(case, rows)
    head = _head_bytes(case, variant, rows)
    gradients = MASTER_BYTES * shape.num_parameters
    head_gradient = embedding * item
    layer_gradients = 2 * rows * shape.feed_forward * item  # of the feed-forward's two widest tensors
    recomputed = layer if case.checkpointing else 0.0
    # At the end the root's gradients are whole in the compute dtype (head and embedding), and reduced in float32.
    root_gradients = embedding * (2 * item + MASTER_BYTES)
    return Bytes(
        weights=MASTER_BYTES * shape.num_parameters,
        optimizer=OPTIMIZER_BYTES * shape.num_parameters,
        gradients=gradients,
        gathered=gathered,
        saved_activations=saved,
        one_layer=recomputed,
        head=head,
        peak_at_head=gathered + saved + final + head,
        peak_at_layer=gathered + saved + recomputed + layer_gradients + head_gradient,
        peak_at_end=gathered + gradients + root_gradients,
    )


def _norm_bytes(case: Case, rows: int) -> float:
    """Bytes of an RMSNorm: its input (a float32 copy if it computes in bfloat16), the normalised and scaled rows."""
    per_item = 12 if case.itemsize == 4 else 4 + 2 + 2
    return float(rows * case.shape.width * per_item)


def _layer_bytes(case: Case, variant: Variant, rows: int) -> float:
    """Bytes that a layer's backward pass needs.

    These are two norms, the attention's queries, keys, values and outputs (all as wide as queries if it pads), and four
    feed-forward rows (gate, its activation, up, their product).
    """
    shape = case.shape
    pads = case.pads_for_attention or variant == "padded_logits"
    attention_rows = case.num_padded_tokens if pads else rows
    key_width = shape.query_width if pads else shape.kv_width
    attention = 2 * attention_rows * (shape.query_width + key_width) * case.itemsize
    if case.pads_for_attention and variant != "padded_logits":
        attention += rows * shape.query_width * case.itemsize  # the output once more, packed again
    return 2 * _norm_bytes(case, rows) + attention + 4 * rows * shape.feed_forward * case.itemsize


def _head_bytes(case: Case, variant: Variant, rows: int) -> float:
    """Bytes of the LM head.

    With all logits: log-probabilities, the gradient of the chosen ones and that of the logits, each [rows, V] in
    float32. In chunks: the logits of one chunk, which become their own gradient, and the head's gradient in float32
    and, after the chunk is freed, in the compute dtype.
    """
    vocabulary, width = case.shape.vocabulary, case.shape.width
    if variant != "packed_chunked":
        return 12.0 * rows * vocabulary
    chunk = min(case.head_chunk_tokens or _default_chunk_tokens(case), case.num_loss_tokens)
    logits = float(case.itemsize * chunk * vocabulary)
    rounded = 0.0 if case.itemsize == 4 else float(case.itemsize * vocabulary * width)
    hidden = 2.0 * case.num_loss_tokens * width * case.itemsize  # the response rows, and their gradient
    return 4.0 * vocabulary * width + max(logits, rounded) + hidden


def _default_chunk_tokens(case: Case) -> int:
    """The chunk size of `fastgrpo_kernels.head`: by tiles on a GPU, by the size of the head's gradient on a CPU."""
    if case.itemsize == 2:
        return 4096
    return max(2 * case.shape.width // 5, 2**23 // case.shape.vocabulary, 32) // 16 * 16


def ratio(values: Sequence[float]) -> list[float]:
    """Each value divided by the last."""
    return [v / values[-1] for v in values]
