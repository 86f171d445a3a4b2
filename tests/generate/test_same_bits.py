"""With weights in blocks a token's logits are the same to the last bit, however its text was cut into passes and
whatever was in them besides: rows are rounded to int8 on the way, and a last bit could become a step.
"""

import pytest
import torch

from shoestring.generate.language_model import LanguageModel
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import save_model
from tests.generate.tiny import byte_tokenizer, strengthened

CONFIG = {
    "vocabulary": 260, "width": 192, "layers": 3, "context": 160, "feed_forward": {"width": 256},
    "attention": {"kind": "gqa", "heads": 3, "kv_heads": 1, "head_width": 64},
}  # fmt: skip
TEXT = torch.randint(256, (37,), generator=torch.Generator().manual_seed(1)).tolist()
CUTS = [[36, 1], [20, 17], [1, 36], [3, 34], [8] * 4 + [5], [1] * 37, [35, 2], [16, 16, 5]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bits") / "model"
    save_model(strengthened(build(ModelConfig.model_validate(CONFIG), seed=0).eval()), folder, byte_tokenizer())
    return folder


@torch.inference_mode()
def logits(decoder, cut, beside=0):
    """Behind the text, read in passes of so many tokens, the last with others' tokens beside it."""
    cache, at = decoder.new_cache(1 + beside, 60), 0
    for number, count in enumerate(cut):
        others = beside if number == len(cut) - 1 else 0
        tokens = TEXT[at : at + count] + TEXT[:2] * others
        rows = cache.rows(list(range(1 + others)), [count] + [2] * others)
        found = decoder.next_logits(torch.tensor([tokens]), [count - 1], rows)
        at += count
    assert at == len(TEXT)
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cache", ["source", "int8"])
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_a_tokens_logits_are_the_same_whatever_is_beside_it(folder, weights, cache, threads):
    decoder, before = LanguageModel.load(folder, weights=weights, cache=cache).decoder, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = logits(decoder, [37])
        for cut in CUTS:
            assert torch.equal(logits(decoder, cut), whole), cut
        for beside in (1, 4, 15):
            assert torch.equal(logits(decoder, [37], beside), whole)
            assert torch.equal(logits(decoder, [36, 1], beside), whole)
    finally:
        torch.set_num_threads(before)
