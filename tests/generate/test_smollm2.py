"""The real model, SmolLM2-135M-Instruct, against transformers on the same folder."""

import pytest
import torch
from transformers import LlamaForCausalLM

from shoestring.generate.language_model import LanguageModel
from shoestring.models.get import get

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "1, 2, 3, 4, 5,",
    "Water boils at",
    "Q: Why is the sky blue?\nA:",
    "import numpy as np\n\n",
    "Dear Sir or Madam,\n\nI am writing to",
]
TOKENS = 64


@pytest.fixture(scope="module")
def folder():
    return get("smollm2-135m")


@pytest.fixture(scope="module")
def model(folder):
    return LanguageModel.load(folder, device="cpu")


@pytest.fixture(scope="module")
def judge(folder):
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def continuations(model):
    """(ids of the prompt, ids of 64 greedy tokens), all prompts decoded in one ragged batch."""
    endless = LanguageModel(model.decoder, model.tokenizer)
    endless.stop_tokens = frozenset()
    completions = endless.complete(PROMPTS, temperature=0, max_tokens=TOKENS)
    assert [len(completion.tokens) for completion in completions] == [TOKENS] * len(PROMPTS)
    return [(model.tokenizer.encode(p), c.tokens) for p, c in zip(PROMPTS, completions, strict=True)]


@torch.inference_mode()
def test_every_greedy_token_is_the_one_transformers_likes_best_after_the_same_tokens(continuations, judge):
    for prompt, tokens in continuations:
        logits = judge(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == tokens


@torch.inference_mode()
def test_logits_after_a_prompt_are_those_of_transformers(model, judge):
    tokens_BT = torch.tensor([model.tokenizer.encode(PROMPTS[2])])
    hidden_BTD, _ = model.decoder(tokens_BT)
    torch.testing.assert_close(model.decoder.head(hidden_BTD), judge(tokens_BT).logits, atol=1e-3, rtol=1e-4)


@pytest.mark.long
@torch.inference_mode()
def test_greedy_continuations_are_those_of_transformers_generate(continuations, judge):
    for prompt, tokens in continuations:
        ids = judge.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=TOKENS, eos_token_id=None
        )
        assert ids[0, len(prompt) :].tolist() == tokens


def test_the_capital_of_france_is_paris(model):
    assert "Paris" in model.chat("What is the capital of France?", temperature=0)
