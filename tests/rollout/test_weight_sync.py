"""The layout contract and broadcasts of the weight sync, without vLLM."""

import threading
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgrpo.rollout.compare_weights import added
from fastgrpo.rollout.vllm.layout import Layout, weight_layout
from fastgrpo.rollout.weight_sync import (
    LayoutError,
    LiveWeights,
    Place,
    Receiver,
    Sender,
    SyncGroup,
    checksum,
    find_store,
    manifest,
    open_store,
)

CPU = torch.device("cpu")


# Live weights.


def place(parameter: str, row: int, held: int, columns: int = 2) -> Place:
    return Place(parameter, row, (0, held), (0, columns), (held, columns))


def test_a_write_reaches_every_element_and_moves_nothing():
    fused, norm = torch.zeros(5, 2), torch.zeros(3)
    places = {"q": place("fused", 0, 3), "k": place("fused", 3, 2), "norm": Place("norm", 0, (0, 3), None, (3,))}
    calls: list[int] = []
    live = LiveWeights({"fused": fused, "norm": norm}, places, lambda: calls.append(1))
    addresses = fused.data_ptr(), norm.data_ptr()
    new = {"q": torch.randn(3, 2), "k": torch.randn(2, 2), "norm": torch.randn(3)}
    live.write(new.items())
    assert torch.equal(fused, torch.cat([new["q"], new["k"]])) and torch.equal(norm, new["norm"])
    assert (fused.data_ptr(), norm.data_ptr()) == addresses
    assert calls == [1]
    assert live.checksums() == {n: checksum(v) for n, v in new.items()}


def test_a_part_takes_its_rows_and_columns_of_the_whole_tensor():
    held = torch.zeros(2, 3)
    live = LiveWeights({"w": held}, {"w": Place("w", 0, (2, 4), (3, 6), (4, 6))})
    whole = torch.randn(4, 6)
    live.write([("w", whole)])
    assert torch.equal(held, whole[2:, 3:])
    assert live.checksums() == {"w": checksum(whole[2:, 3:].contiguous(), 2, 3)}


@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (3, 1, 4), (2, 3, 4), (2, 2, 2, 2)], ids=str)
def test_a_tensor_of_any_number_of_dimensions_has_a_place(shape):
    """A scale, a norm, a matrix, a convolution, experts."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(shape))
    live = LiveWeights.of_modules(module)
    new = torch.randn(shape)
    live.write([("weight", new)])
    assert torch.equal(module.weight.data, new)
    assert live.checksums() == {"weight": checksum(new)}
    synced({"weight": new + 1}, torch.float32, [live])
    assert torch.equal(module.weight.data, new + 1)


def test_the_checksum_of_experts_sees_which_expert_and_row_a_value_is_of():
    experts = torch.randn(3, 4, 64)
    swapped = [
        experts[[1, 0, 2]],
        experts[:, [1, 0, 2, 3]],
        experts.flip(-1),
        experts.transpose(0, 1).reshape(3, 4, 64),
    ]
    assert len({checksum(one.contiguous()) for one in (experts, *swapped)}) == 5
    assert checksum(experts) == checksum(experts.flatten(0, 1))


def test_blocks_of_rows_hold_the_same_rows_of_each_and_their_checksums_add_up():
    """Two ranks with half of every expert's gate and up rows."""
    whole, held = torch.randn(3, 2 * 4, 5), [torch.zeros(3, 2 * 2, 5) for _ in range(2)]
    shards = [
        LiveWeights({"w": part}, {"w": Place("w", 0, (2 * rank, 2 * rank + 2), (0, 5), (3, 8, 5), blocks=6)})
        for rank, part in enumerate(held)
    ]
    for rank, shard in enumerate(shards):
        shard.write([("w", whole)])
        gate, up = whole[:, :4], whole[:, 4:]
        rows = slice(2 * rank, 2 * rank + 2)
        assert torch.equal(held[rank], torch.cat([gate[:, rows], up[:, rows]], 1))
    assert added(shard.checksums() for shard in shards) == {"w": checksum(whole)}


@pytest.mark.parametrize(
    "places",
    [
        {"q": place("fused", 0, 3), "k": place("fused", 2, 3)},  # overlap
        {"q": place("fused", 0, 2), "k": place("fused", 3, 2)},  # gap
        {"q": place("fused", 0, 3)},  # an end without a weight
        {"q": place("fused", 1, 4)},  # a beginning without one
        {},
        {"q": place("fused", 0, 3), "k": place("fused", 3, 3)},  # behind the end
        {"q": place("fused", 0, 5, columns=3)},
        {"q": Place("fused", 0, (0, 5), None, (5,))},
    ],
)
def test_overlaps_gaps_and_wrong_shapes_are_refused_by_name(places):
    with pytest.raises(LayoutError, match="fused"):
        LiveWeights({"fused": torch.zeros(5, 2)}, places)


def test_padding_must_be_as_long_as_it_is_said_to_be():
    places = {"w": place("w", 0, 3)}
    LiveWeights({"w": torch.zeros(5, 2)}, places, padding={"w": 2})
    for wrong in (0, 1, 3):
        with pytest.raises(LayoutError, match="w belong to no weight"):
            LiveWeights({"w": torch.zeros(5, 2)}, places, padding={"w": wrong})


def test_a_parameter_that_is_not_contiguous_is_refused():
    with pytest.raises(LayoutError, match="strides"):
        LiveWeights({"w": torch.zeros(2, 5).T}, {"w": place("w", 0, 5)})


def test_a_write_of_another_shape_or_name_is_refused():
    live = LiveWeights({"w": torch.zeros(5, 2)}, {"w": place("w", 0, 5)})
    with pytest.raises(ValueError, match=r"w must have shape \[5, 2\], got \[2, 5\]"):
        live.write([("w", torch.zeros(2, 5))])
    with pytest.raises(KeyError):
        live.write([("other", torch.zeros(5, 2))])


# The layout of vLLM's layers, by the attributes that they have.


def layer(kind: str, parameters: dict[str, tuple[int, ...]], **attributes: Any) -> nn.Module:
    module = type(kind, (nn.Module,), {})()
    for name, shape in parameters.items():
        module.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def sharded_model(rank: int, size: int, key_heads: int = 1) -> nn.Module:
    """Two heads of two columns, a vocabulary of 5 padded to 8, as one process of vLLM holds them."""
    of = {"tp_rank": rank, "tp_size": size}
    heads, held_keys = 2 // size, max(1, key_heads // size)
    rows = (heads + 2 * held_keys) * 2
    start, stop = 8 // size * rank, min(5, 8 // size * (rank + 1))
    vocabulary = SimpleNamespace(org_vocab_start_index=start, org_vocab_end_index=stop)
    model = layer("Model", {}, packed_modules_mapping={"qkv_proj": ["q", "k", "v"], "gate_up_proj": ["gate", "up"]})
    model.add_module("block", layer("Block", {}))
    children = {
        "embed": layer(
            "VocabParallelEmbedding",
            {"weight": (8 // size, 4)},
            tp_size=size,
            org_vocab_size=5,
            shard_indices=vocabulary,
        ),
        "qkv_proj": layer(
            "QKVParallelLinear",
            {"weight": (rows, 4), "bias": (rows,)},
            num_heads=heads,
            num_kv_heads=held_keys,
            head_size=2,
            num_kv_head_replicas=max(1, size // key_heads),
            total_num_heads=2,
            total_num_kv_heads=key_heads,
            **of,
        ),
        "o": layer("RowParallelLinear", {"weight": (4, 4 // size), "bias": (4,)}, **of),
        "norm": layer("RMSNorm", {"weight": (4,)}),
        "gate_up_proj": layer("MergedColumnParallelLinear", {"weight": (12 // size, 4)}, output_sizes=[6, 6], **of),
        "router": layer("ReplicatedLinear", {"weight": (3, 4)}, tp_rank=0, tp_size=1),
        "wide": layer("ColumnParallelLinear", {"weight": (6 // size, 4)}, **of),
    }
    for name, child in children.items():
        (model.block if name.endswith("_proj") else model).add_module(name, child)
    return model


def live(model: nn.Module) -> LiveWeights:
    layout = weight_layout(model)
    return LiveWeights({n: p.data for n, p in model.named_parameters()}, layout.places, padding=layout.padding)


@pytest.mark.parametrize("size, key_heads", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_shards_together_hold_every_element_once_in_their_checksums(size, key_heads):
    shards = [live(sharded_model(rank, size, key_heads)) for rank in range(size)]
    shapes = {name: place.shape for name, place in shards[0].places.items()}
    assert shapes.keys() >= {
        "embed.weight",
        "block.q.weight",
        "block.k.bias",
        "block.gate.weight",
        "block.up.weight",
        "o.bias",
        "norm.weight",
    }
    assert (
        shapes["embed.weight"] == (5, 4)
        and shapes["block.k.weight"] == (2 * key_heads, 4)
        and shapes["o.weight"] == (4, 4)
    )
    whole = {name: torch.randn(shape) for name, shape in shapes.items()}
    for one in shards:
        one.write(whole.items())
    assert added(one.checksums() for one in shards) == {name: checksum(value) for name, value in whole.items()}


def test_replicas_of_a_key_head_hold_the_same_rows():
    shards = [live(sharded_model(rank, 2)) for rank in range(2)]
    keys = torch.randn(2, 4)
    for one in shards:
        one.views["block.k.weight"].copy_(one.places["block.k.weight"].part_of(keys))
        assert torch.equal(one.views["block.k.weight"], keys)
    assert [one.places["block.k.weight"].is_first for one in shards] == [True, False]


@pytest.mark.parametrize(
    "kind, name, shape",
    [
        ("FusedMoE", "w13_weight", (2, 4, 4)),
        ("RowParallelLinear", "weight_scale", (4,)),
        ("Fp8Linear", "input_scale", (1,)),
        ("Conv1d", "weight", (4, 1, 4)),
    ],
)
def test_a_parameter_that_is_not_known_is_refused_by_name(kind, name, shape):
    model = sharded_model(0, 1)
    model.add_module("strange", layer(kind, {name: shape}))
    with pytest.raises(LayoutError, match=rf"strange\.{name} .* of {kind}"):
        weight_layout(model)


def mixture(rank: int = 0, size: int = 1, backend: str = "TRITON", **changes: Any) -> nn.Module:
    """Three experts of a hidden width of 4 and a width of 2 on each process, as vLLM holds them."""
    settings = SimpleNamespace(
        moe_parallel_config=SimpleNamespace(tp_rank=rank, tp_size=size, use_ep=changes.pop("use_ep", False)),
        num_logical_experts=3,
        intermediate_size_per_partition_unpadded=2,
        hidden_dim_unpadded=4,
    )
    attributes = {
        "moe_config": settings,
        "quant_method": SimpleNamespace(unquantized_backend=SimpleNamespace(name=backend)),
        "is_fused_checkpoint_transposed": False,
        "ckpt_gate_proj_name": "gate_proj",
        "ckpt_up_proj_name": "up_proj",
        "ckpt_down_proj_name": "down_proj",
        **changes,
    }
    model = layer("Model", {})
    model.add_module("moe", layer("Block", {}))
    model.get_submodule("moe").add_module("experts", layer("Runner", {}))
    shapes = {"w13_weight": (3, 4, 4), "w2_weight": (3, 4, 2)}
    model.get_submodule("moe.experts").add_module("routed_experts", layer("RoutedExperts", shapes, **attributes))
    return model


def renamed(name: str) -> str:
    return name.replace("moe.", "mlp.")


@pytest.mark.parametrize("size", [1, 2])
def test_experts_are_written_as_one_tensor_and_one_by_one(size):
    up, down = torch.randn(3, 2 * 2 * size, 4), torch.randn(3, 4, 2 * size)
    together = {"mlp.experts.gate_up_proj": up, "mlp.experts.down_proj": down}
    one_by_one = {}
    for i in range(3):
        gate_rows, up_rows = up[i].chunk(2)
        parts = {"gate_proj": gate_rows, "up_proj": up_rows, "down_proj": down[i]}
        one_by_one |= {f"moe.experts.{i}.{name}.weight": part for name, part in parts.items()}
    held = []
    for weights in (together, one_by_one):
        models = [mixture(rank, size) for rank in range(size)]
        layouts = [weight_layout(model, renamed) for model in models]
        shards = [
            LiveWeights(dict(m.named_parameters()), layout.places, others=layout.others)
            for m, layout in zip(models, layouts, strict=True)
        ]
        for shard in shards:
            shard.write(weights.items())
        assert added(shard.checksums() for shard in shards) == {n: checksum(w) for n, w in together.items()}
        assert shards[0].names_for(weights) == weights.keys()
        synced({n: w + 1 for n, w in weights.items()}, torch.float32, shards)
        held.append([p.clone() for model in models for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*held, strict=True))
    gate, ups = up.chunk(2, dim=1)
    expected = torch.cat([gate[:, :2], ups[:, :2]], 1) + 1
    assert torch.equal(held[0][0], expected) and torch.equal(held[0][1], down[..., :2] + 1)


@pytest.mark.parametrize(
    "changes", [{"backend": "AITER"}, {"is_fused_checkpoint_transposed": True}, {"use_ep": True}], ids=str
)
def test_experts_in_an_order_of_the_kernels_own_are_refused_by_name(changes):
    with pytest.raises(LayoutError, match=r"moe\.experts\.routed_experts\.w13_weight \[3, 4, 4\]: experts of vLLM's"):
        weight_layout(mixture(**changes))


def test_latent_attention_whose_products_would_stay_old_is_refused_by_name():
    model = sharded_model(0, 1)
    model.block.add_module("attn", layer("MLAAttention", {}))
    with pytest.raises(LayoutError, match=r"block\.attn: latent attention computes from products"):
        weight_layout(model)


@pytest.mark.parametrize("mapping", [{}, {"qkv_proj": ["qkv_proj"]}])
def test_a_fused_layer_whose_members_are_not_known_is_refused_by_name(mapping):
    model = sharded_model(0, 1)
    model.packed_modules_mapping = mapping
    with pytest.raises(
        LayoutError, match=r"block\.qkv_proj\.weight: the members of the fused layer qkv_proj are not known"
    ):
        weight_layout(model)


def test_a_tied_head_has_one_place():
    model = sharded_model(0, 1)
    model.add_module("head", layer("ParallelLMHead", {}))
    model.get_submodule("head").weight = model.get_submodule("embed").weight
    assert isinstance(weight_layout(model), Layout)
    assert "head.weight" not in weight_layout(model).places


# Broadcast.


def synced(weights: dict[str, Tensor], wire: torch.dtype, receivers: list[LiveWeights], times: int = 1) -> None:
    size = 1 + len(receivers)
    store = open_store("127.0.0.1", size, 20)
    names = manifest(weights.items(), wire)
    errors: list[BaseException] = []

    def receive(rank: int, live: LiveWeights) -> None:
        try:
            group = SyncGroup.join(find_store("127.0.0.1", store.port, size, 20), rank, size, CPU, 20)
            receiver = Receiver(group, live, names)
            for _ in range(times):
                receiver.receive()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=receive, args=(i + 1, live)) for i, live in enumerate(receivers)]
    for thread in threads:
        thread.start()
    sender = Sender(SyncGroup.join(store, 0, size, CPU, 20), names)
    for _ in range(times):
        items = list(weights.items())
        sender.send(items[:2])
        sender.send(items[2:])
    for thread in threads:
        thread.join(20)
    assert not errors, errors


@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16], ids=str)
def test_a_broadcast_reaches_whole_and_sharded_engines_in_place(wire):
    engines = [live(sharded_model(0, 1)), live(sharded_model(0, 2)), live(sharded_model(1, 2))]
    weights = {n: torch.randn(p.shape) for n, p in engines[0].places.items()}
    addresses = [{n: v.data_ptr() for n, v in e.views.items()} for e in engines]
    synced(weights, wire, engines, times=3)
    wanted = {n: checksum(w.to(wire).float()) for n, w in weights.items()}
    assert engines[0].checksums() == wanted
    assert added([engines[1].checksums(), engines[2].checksums()]) == wanted
    assert [{n: v.data_ptr() for n, v in e.views.items()} for e in engines] == addresses


def test_a_group_meets_at_the_stores_address_whatever_gloo_would_take(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "of_a_launch_elsewhere")
    engine = live(sharded_model(0, 1))
    synced({n: torch.randn(p.shape) for n, p in engine.places.items()}, torch.float32, [engine])


def test_who_is_left_in_an_aborted_group_does_not_wait_for_the_deadline():
    store, waited_s = open_store("127.0.0.1", 3, 20), []

    def wait(rank: int) -> None:
        group = SyncGroup.join(find_store("127.0.0.1", store.port, 3, 20), rank, 3, CPU, 20)
        begin = time.monotonic()
        with pytest.raises(RuntimeError):
            group.broadcast(torch.zeros(3)).wait()
        waited_s.append(time.monotonic() - begin)

    peers = [threading.Thread(target=wait, args=(rank,)) for rank in (1, 2)]
    for peer in peers:
        peer.start()
    SyncGroup.join(store, 0, 3, CPU, 20).abort()
    for peer in peers:
        peer.join(30)
    assert len(waited_s) == 2 and max(waited_s) < 10


def alone() -> SyncGroup:
    return SyncGroup.join(dist.HashStore(), 0, 1, CPU, 5)


def test_an_engine_of_another_model_is_refused_before_anything_is_written():
    engine = live(sharded_model(0, 1))
    names = manifest([(n, torch.zeros(p.shape)) for n, p in engine.places.items()], torch.float32)
    Receiver(alone(), engine, names)
    with pytest.raises(KeyError, match=r"do not have the same weights: embed\.weight"):
        Receiver(alone(), engine, tuple(n for n in names if n[0] != "embed.weight"))
    name, _, dtype = next(n for n in names if n[0] == "embed.weight")
    with pytest.raises(KeyError, match=r"embed\.weight has shape \[6, 4\], the engine's \[5, 4\]"):
        Receiver(alone(), engine, ((name, (6, 4), dtype), *(n for n in names if n[0] != name)))


def test_tensors_in_another_order_are_not_sent():
    sender = Sender(alone(), manifest([("a", torch.zeros(2)), ("b", torch.zeros(2))], torch.float32))
    with pytest.raises(AssertionError, match=r"needed a .* got b"):
        sender.send([("b", torch.zeros(2))])


def test_a_group_whose_peers_do_not_come_ends_in_time():
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, timeout=timedelta(seconds=1), wait_for_workers=False)
    with pytest.raises(RuntimeError):
        SyncGroup.join(store, 0, 2, CPU, 1)
