"""Stacked layers: copies of the layers below, or copies that change nothing yet; shared blocks run once more."""

import pytest
import torch

from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.growth import become, grown

LATENT = {"heads": 2, "latent_rank": 12, "content_width": 8, "rotary_width": 8, "value_width": 8}
KINDS = {
    "sequential": {},
    "reversible": {"block": "reversible"},
    "low rank": {"linear": {"kind": "low_rank", "rank": 6}},
    "experts": {"feed_forward": {"kind": "moe", "width": 16, "experts": 4, "shared_width": 8}},
    "biases": {
        "attention": {"heads": 2, "kv_heads": 1, "head_width": 16, "output_bias": True},
        "feed_forward": {"kind": "gelu", "width": 48, "bias": True},
    },
    "bottlenecks": {"bottleneck": {"width": 4}},
    "value residual": {"value_residual": True},
    "convolution": {"embedding_convolution": 3},
    "mla": {"attention": {"kind": "mla", **LATENT}},
    "mtla": {"attention": {"kind": "mtla", **LATENT, "stride": 2}},
}


def model(**changes):
    shape = {
        "vocabulary": 60, "width": 32, "layers": 2, "context": 32, "feed_forward": {"width": 48},
        "attention": {"heads": 2, "kv_heads": 1, "head_width": 16},
    }  # fmt: skip
    decoder = build(ModelConfig.model_validate({**shape, **changes}), seed=3)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():  # as trained ones, biases and bottlenecks too
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return decoder


def logits(decoder):
    tokens_BT = torch.randint(0, 60, (2, 20), generator=torch.Generator().manual_seed(1))
    return decoder.head(decoder(tokens_BT)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_add_nothing_leave_the_function_as_it_was_to_the_last_bit(kind):
    decoder = model(**KINDS[kind])
    before = logits(decoder)
    deeper = grown(decoder, 6, "zero")
    assert deeper.config.layers == len(deeper.blocks) == 6 and logits(deeper).equal(before)
    parameters = dict(deeper.named_parameters())
    logits(deeper).square().sum().backward()
    moved = [name for name, p in parameters.items() if p.grad is not None and bool(p.grad.any())]
    assert {name.split(".")[1] for name in moved} >= {"2", "3", "4", "5"}, "each new layer can learn"


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_layers_are_copies_of_those_below_in_memory_of_their_own(kind):
    decoder = model(**KINDS[kind])
    deeper = grown(decoder, 6)
    parameters, old = dict(deeper.named_parameters()), dict(decoder.named_parameters())
    assert all(parameters[name] is old[name] for name in old)
    new = parameters.keys() - old.keys()
    assert {name.split(".")[1] for name in new} == {"2", "3", "4", "5"}
    for name in new:
        blocks, index, rest = name.split(".", 2)
        origin = old[f"{blocks}.{int(index) % 2}.{rest}"]
        assert parameters[name].equal(origin) and parameters[name].data_ptr() != origin.data_ptr()
    fresh = build(deeper.config, seed=1)
    assert list(dict(fresh.named_parameters())) == list(parameters), "in the order of a model that was built so"
    fresh.load_state_dict(deeper.state_dict())
    assert logits(fresh).equal(logits(deeper))
    assert not logits(deeper).equal(logits(decoder))


def test_shared_blocks_are_not_copied_but_run_once_more():
    sharing = {"sharing": {"unique_layers": 2, "order": "cycle"}, "block": "reversible"}
    decoder = model(layers=2, **sharing)
    deeper = grown(decoder, 4)
    assert deeper.parameter_count() == decoder.parameter_count()
    built = build(deeper.config, seed=1)
    built.load_state_dict(deeper.state_dict())
    assert logits(built).equal(logits(deeper)) and not logits(deeper).equal(logits(decoder))


def test_whoever_holds_the_model_has_the_deeper_one_with_a_cache_of_its_depth():
    decoder = model()
    become(decoder, grown(decoder, 4, "zero"))
    assert decoder.config.layers == 4 and len(decoder.blocks) == 4
    tokens_BT, cache = torch.arange(10)[None], decoder.new_cache(1, 10)
    cached = torch.cat([decoder(tokens_BT[:, n : n + 1], cache=cache)[0] for n in range(10)], 1)
    torch.testing.assert_close(cached, decoder(tokens_BT)[0])
