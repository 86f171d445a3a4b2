"""Training a byte-level BPE tokenizer on a corpus.

Text is cut into digits one by one and then words by GPT-2's pattern, before pairs of bytes are merged
(Sennrich et al. 2016; Radford et al. 2019). It is the pre-tokenization of SmolLM2, which llama.cpp knows as
`smollm`, so that a model trained here can be exported. `<|endoftext|>` has the id 0 and both opens and ends
a document.
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.waiting import waiting
from shoestring.data.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # every byte, and <|endoftext|>
# Merging a pair costs the square of a word's length, and text without spaces (bases of DNA, base64) is one word.
_LONGEST_WORD = 256  # bytes
LARGEST_VOCABULARY = 2**20


def train_tokenizer(texts: Iterable[str], vocabulary: int = 4096, min_frequency: int = 2) -> Tokenizer:
    """A tokenizer of at most `vocabulary` ids, from pairs seen `min_frequency` times; the same on every run.

    Words of more than 256 bytes are learned from in pieces, so that the time grows with the text alone.
    A small corpus may not have that many pairs: then the vocabulary is smaller, and stderr says so.
    Raises ConfigError for a vocabulary that cannot hold all bytes, or that nobody could train.
    """
    if vocabulary > LARGEST_VOCABULARY:
        raise ConfigError(f"a vocabulary of {vocabulary:,} is too large", hint=f"the most is {LARGEST_VOCABULARY:,}")
    if vocabulary < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"a vocabulary of {vocabulary} cannot hold all bytes", hint=f"the least is {SMALLEST_VOCABULARY}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    cut = pre_tokenizers.Split(tokenizers.Regex(f".{{{_LONGEST_WORD}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([*words, cut])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with waiting(f"training a tokenizer of {vocabulary:,} tokens"):
        backend.train_from_iterator(texts, trainer)
    backend.pre_tokenizer = pre_tokenizers.Sequence(words)
    # Documents begin with the separator in training, so a prompt must begin with it as well, in any tool.
    first = (END_OF_TEXT, backend.token_to_id(END_OF_TEXT))
    backend.post_processor = processors.TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[first])
    config = {"add_bos_token": True}
    tokenizer = Tokenizer.from_backend(backend, bos=END_OF_TEXT, eos=END_OF_TEXT, config=config)
    if tokenizer.vocabulary_size < vocabulary:
        found = f"{tokenizer.vocabulary_size:,} of {vocabulary:,} tokens"
        console.say(
            f"tokenizer: the text gives only {found} (pairs seen at least {min_frequency} times)"
        )
    return tokenizer
