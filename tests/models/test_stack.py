"""How blocks run: shared ones counted, saved and optimized once; learned positions; outputs that begin at zero."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, save_model
from shoestring.nn.config import SharingConfig, block_order
from shoestring.train.optimizer import build_optimizer
from shoestring.train.optimizer_config import AdamWConfig


def config(**changes) -> ModelConfig:
    return ModelConfig.model_validate({
        "vocabulary": 61, "width": 32, "layers": 4, "context": 16,
        "attention": {"heads": 4, "kv_heads": 2, "head_width": 8}, "feed_forward": {"width": 48}, **changes,
    })  # fmt: skip


def tokens(count: int = 9) -> torch.Tensor:
    return torch.randint(0, 61, (2, count), generator=torch.Generator().manual_seed(0))


CYCLE = {"unique_layers": 2, "order": "cycle"}


def test_the_order_of_shared_blocks():
    assert block_order(5, None) == (0, 1, 2, 3, 4)
    assert block_order(6, SharingConfig(unique_layers=3)) == (0, 1, 2, 0, 1, 2)
    assert block_order(6, SharingConfig(unique_layers=3, order="repeat")) == (0, 0, 1, 1, 2, 2)
    assert block_order(5, SharingConfig(unique_layers=2, order="repeat")) == (0, 0, 0, 1, 1)


@pytest.mark.parametrize("block", ["sequential", "reversible"])
def test_shared_blocks_compute_what_copies_of_them_compute_and_gather_their_gradients(block):
    shared = build(config(sharing=CYCLE, block=block), seed=0, dtype=torch.float64)
    copies = build(config(block=block), seed=0, dtype=torch.float64)
    state = shared.state_dict()
    for position in range(4):
        prefix = f"blocks.{position % 2}."
        part = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        copies.blocks[position].load_state_dict(part)
    for part in ("embedding", "norm"):
        getattr(copies, part).load_state_dict(getattr(shared, part).state_dict())
    outputs = [decoder(tokens())[0] for decoder in (shared, copies)]
    assert_close(*outputs)
    for output in outputs:
        output.pow(2).sum().backward()
    for index in (0, 1):
        for name, parameter in shared.blocks[index].named_parameters():
            both = [dict(copies.blocks[i].named_parameters())[name].grad for i in (index, index + 2)]
            assert_close(parameter.grad, both[0] + both[1])


def test_a_shared_block_is_counted_optimized_and_saved_once(tmp_path):
    shape = config(sharing=CYCLE)
    decoder = build(shape, seed=0)
    single = build(config(layers=2), seed=0)
    assert shape.parameter_count() == decoder.parameter_count() == single.parameter_count()
    groups = build_optimizer(AdamWConfig(), decoder).param_groups
    assert sum(p.numel() for group in groups for p in group["params"]) == decoder.parameter_count()
    save_model(decoder, tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert {name.split(".")[2] for name in names if name.startswith("model.layers.")} == {"0", "1"}
    loaded = load_model(tmp_path / "model")
    assert len(loaded.blocks) == 2 and loaded.config == shape
    assert torch.equal(loaded(tokens())[0], decoder(tokens())[0])


def test_every_position_of_a_shared_block_has_its_own_cache():
    cache = build(config(sharing=CYCLE), seed=0).new_cache(1, 8)
    assert len(cache.keys) == 4


def test_more_blocks_than_positions_are_refused():
    with pytest.raises(ValueError, match=r"sharing.unique_layers \(5\) must be at most layers \(4\)"):
        config(sharing={"unique_layers": 5})


# Positions


def test_learned_positions_are_rows_of_a_table_added_to_the_embedding():
    decoder = build(config(position={"kind": "learned"}), seed=0)
    table = decoder.inputs["positions"].weight
    seen = []
    decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    positions = torch.tensor([[0, 1, 2, 0, 1], [3, 4, 5, 6, 7]])
    decoder(tokens(5), positions_BT=positions)
    assert_close(seen[0], decoder.embedding(tokens(5)) + table[positions])


def test_a_position_beyond_the_table_is_refused():
    decoder = build(config(position={"kind": "rope_learned"}), seed=0)
    decoder(tokens(16))
    with pytest.raises(ValueError, match="position 16 is beyond the 16 learned positions"):
        decoder(tokens(17))


@pytest.mark.parametrize(("kind", "rotary"), [("rope", 1), ("learned", 0), ("rope_learned", 1), ("none", 0)])
def test_which_positions_turn_the_queries(kind, rotary):
    decoder = build(config(position={"kind": kind}), seed=0)
    assert (decoder.rotary is not None) == rotary
    assert ("positions" in decoder.inputs) == ("learned" in kind)


def test_without_positions_earlier_tokens_may_be_swapped():
    """Of one layer: in deeper ones the causal mask itself tells positions apart."""
    decoder = build(config(position={"kind": "none"}, layers=1), seed=0, dtype=torch.float64)
    swapped = tokens()[:, [1, 0, 2, 3, 4, 5, 6, 7, 8]]
    assert_close(decoder(tokens())[0][:, 2:], decoder(swapped)[0][:, 2:])
    turned = build(config(layers=1), seed=0, dtype=torch.float64)
    assert (turned(tokens())[0] - turned(swapped)[0])[:, 2:].abs().max() > 1e-6


# Options


@pytest.mark.parametrize("linear", [{"kind": "dense"}, {"kind": "low_rank", "rank": 4}])
def test_outputs_initialized_to_zero_leave_a_fresh_model_its_embedding_and_still_learn(linear):
    decoder = build(config(zero_init_output=True, linear=linear), seed=0)
    hidden = decoder(tokens())[0]
    assert_close(hidden, decoder.norm(decoder.embedding(tokens())))
    hidden.pow(3).sum().backward()
    for name in ("attention.output", "feed_forward.down"):
        gradients = [p.grad.abs().max() for p in decoder.blocks[0].get_submodule(name).parameters()]
        assert max(gradients) > 0


def test_an_untied_head_is_a_matrix_of_its_own():
    decoder = build(config(tied_head=False), seed=0)
    assert decoder.head.weight is not decoder.embedding.weight
    assert not torch.equal(decoder.head.weight, decoder.embedding.weight)


# Value residuals


def with_share(share: float, **changes):
    """(a model whose values are mixed by this share, the plain model of the same weights)"""
    mixed = build(config(value_residual=True, **changes), seed=0, dtype=torch.float64)
    plain = build(config(**changes), seed=0, dtype=torch.float64)
    plain.load_state_dict({n: p for n, p in mixed.state_dict().items() if "value_share" not in n})
    for block in mixed.blocks:
        block.attention.value_share.weight.data.fill_(share)
    return mixed, plain


def test_a_share_of_zero_is_the_plain_model():
    mixed, plain = with_share(0.0)
    assert_close(mixed(tokens())[0], plain(tokens())[0])
    assert (with_share(0.5)[0](tokens())[0] - plain(tokens())[0]).abs().max() > 1e-6


def test_a_share_of_one_reads_the_first_layers_values_everywhere():
    mixed, _ = with_share(1.0)
    before = mixed(tokens())[0]
    for block in mixed.blocks[1:]:
        block.attention.value.weight.data.normal_()
    assert_close(mixed(tokens())[0], before)
    mixed.blocks[0].attention.value.weight.data.normal_()
    assert (mixed(tokens())[0] - before).abs().max() > 1e-3


def test_the_first_layers_values_get_gradients_from_every_layer():
    mixed, _ = with_share(0.5)
    for block in mixed.blocks[1:]:
        block.attention.value.requires_grad_(False)
    gradients = []
    for share in (0.0, 0.5):
        for block in mixed.blocks[1:]:
            block.attention.value_share.weight.data.fill_(share)
        mixed.zero_grad()
        mixed(tokens())[0].pow(3).sum().backward()
        gradients.append(mixed.blocks[0].attention.value.weight.grad.clone())
    assert (gradients[0] - gradients[1]).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block": "reversible"}, "reversible blocks exist to avoid"),
        ({"memory": {"layers": [0]}}, "exclude each other"),
        (
            {
                "attention": {
                    "kind": "mla", "heads": 2, "latent_rank": 8, "content_width": 8, "rotary_width": 4, "value_width": 8
                }
            },
            "attention of kind mla",
        ),
    ],
)  # fmt: skip
def test_where_value_residuals_make_no_sense_the_config_says_why(changes, reason):
    with pytest.raises(ValueError, match=reason):
        config(value_residual=True, **changes)
