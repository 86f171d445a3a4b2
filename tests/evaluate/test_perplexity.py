"""Perplexity: each token once, as transformers computes it, on texts of any length and on conversations."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import transformers

from shoestring.core.errors import BudgetError, ConfigError, DataError
from shoestring.data.train_tokenizer import train_tokenizer
from shoestring.evaluate.perplexity import perplexity
from shoestring.evaluate.text import windows
from shoestring.generate.language_model import LanguageModel
from shoestring.kernels.decode import weights_of
from shoestring.models.folder import load_model
from shoestring.nn.quantized.decoding import DecodingLinear
from shoestring.offload.load import load
from tests.data.families import QWEN25, by_hand, chatml

TEXTS = ["one and two and three and four and five", "a", "two and one", "of three and four and of five and six " * 4]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A tiny Qwen2 of transformers, the model loaded here, and a tokenizer of 61 ids or fewer."""
    folder = tmp_path_factory.mktemp("perplexity")
    torch.manual_seed(3)
    config = transformers.Qwen2Config(
        vocab_size=400, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.4,
    )  # fmt: skip
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    train_tokenizer(TEXTS, 300).save(folder)
    return theirs, folder


def losses(theirs, ids: list[int]) -> torch.Tensor:
    """Of the tokens after the first, each given all before it [n - 1]."""
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


def write_texts(folder, texts=TEXTS):
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def test_texts_that_fit_the_context_are_as_transformers_says(judge, tmp_path):
    theirs, folder = judge
    result = perplexity(folder, write_texts(tmp_path, TEXTS[:3]))
    tokenizer = LanguageModel.load(folder).tokenizer
    expected = torch.cat([losses(theirs, [tokenizer.bos_id, *tokenizer.encode(text)]) for text in TEXTS[:3]])
    assert result.tokens == len(expected) and result.documents == 3
    assert result.loss == pytest.approx(float(expected.mean()), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(float(expected.mean())), rel=1e-5)
    assert result.bytes == sum(len(text.encode()) for text in TEXTS[:3])
    assert result.bits_per_byte == pytest.approx(float(expected.sum()) / math.log(2) / result.bytes, rel=1e-5)


def test_a_long_text_is_scored_token_by_token_in_windows(judge, tmp_path):
    theirs, folder = judge
    (tmp_path / "long.txt").write_text(TEXTS[3])
    result = perplexity(folder, tmp_path / "long.txt", context=16, stride=5)
    tokenizer = LanguageModel.load(folder).tokenizer
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXTS[3])]
    assert len(ids) > 32
    expected, first, end = [], 0, 0
    while end < len(ids) - 1:  # written apart from the code under test: the harness's loop
        end = min(16, len(ids) - 1) if end == 0 else min(end + 5, len(ids) - 1)
        begin = max(0, end - 16)
        window = losses(theirs, ids[begin : end + 1])
        expected.append(window[first - begin :])
        first = end
    expected = torch.cat(expected)
    assert result.tokens == len(expected) == len(ids) - 1
    assert result.loss == pytest.approx(float(expected.mean()), rel=1e-5)
    whole = perplexity(folder, tmp_path / "long.txt", context=64)
    assert whole.loss != pytest.approx(result.loss, rel=1e-4)  # the context matters


def test_a_shorter_stride_never_takes_context_away():
    for tokens in (1, 15, 16, 17, 100):
        for context, stride in ((16, 16), (16, 5), (16, 1)):
            scored = []
            for begin, first, end in windows(tokens, context, stride):
                assert 0 <= begin <= first < end <= tokens and end - begin <= context
                assert first == 0 or first - begin >= context - stride
                scored += range(first, end)
            assert scored == list(range(tokens))


def test_of_a_conversation_the_assistants_words_are_scored(judge, tmp_path):
    theirs, folder = judge
    tokenizer = chatml(QWEN25)
    model = LanguageModel(load_model(folder), tokenizer)
    rows = [
        [{"role": "system", "content": "s"}, {"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "2"}, {"role": "assistant", "content": "15"}],
    ]
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    result = perplexity(model, file)
    start = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n"
    middle = "<|im_end|>\n<|im_start|>assistant\n"
    total = torch.zeros(0)
    for ask, reply in (("1?", "2"), ("2", "15")):
        ids, mask = by_hand(tokenizer, f"{start}{ask}{middle}‹{reply}<|im_end|>›\n")
        total = torch.cat([total, losses(theirs, ids)[torch.tensor(mask[1:])]])
    assert result.form == "messages" and result.tokens == len(total) and result.documents == 2
    assert result.loss == pytest.approx(float(total.mean()), rel=1e-5)
    assert perplexity(model, file, examples=1).documents == 1


def test_special_tokens_are_read_in_rows_of_text_and_are_letters_in_a_text(judge, tmp_path):
    theirs, folder = judge
    tokenizer = chatml(QWEN25)
    model = LanguageModel(load_model(folder), tokenizer)
    text = "one<|im_end|>two"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": text}) + "\n")
    (tmp_path / "text.txt").write_text(text)
    opening = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    for file, columns, read in (("rows.jsonl", {"text": "body"}, True), ("text.txt", None, False)):
        expected = losses(theirs, [opening, *tokenizer.encode(text, specials=read)])
        result = perplexity(model, tmp_path / file, columns=columns)
        assert result.tokens == len(expected) and result.loss == pytest.approx(float(expected.mean()), rel=1e-5)
    with pytest.raises(ConfigError, match="no columns"):
        perplexity(model, tmp_path / "text.txt", columns={"text": "body"})


def test_only_the_first_texts_are_read_when_so_many_are_asked_for(judge, tmp_path):
    file = write_texts(tmp_path)
    assert perplexity(judge[1], file, examples=2).bytes == len(TEXTS[0]) + len(TEXTS[1])


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"context": 65}, ConfigError, "longer than the model's"),
        ({"context": 8, "stride": 9}, ConfigError, "leaves out text"),
        ({"stride": 0}, ConfigError, "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(judge, tmp_path, settings, error, reason):
    with pytest.raises(error, match=reason):
        perplexity(judge[1], write_texts(tmp_path), **settings)


def test_a_budget_keeps_room_for_so_many_tokens_at_once(judge, tmp_path):
    with pytest.raises(BudgetError, match="too little"):
        load(judge[1], memory="100MB", scoring=True)
    model = load(judge[1], memory="8GB", scoring=True)
    model.at_once = 32
    with pytest.raises(ConfigError, match="inside a memory budget at most 32 tokens"):
        perplexity(model, write_texts(tmp_path), context=33)


def test_a_source_without_text_is_refused(judge, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="no text"):
        perplexity(judge[1], tmp_path / "empty.txt")


def test_a_streamed_model_scores_as_one_in_memory(judge, tmp_path, monkeypatch):
    from shoestring.offload import load as loading

    file = write_texts(tmp_path)
    resident = perplexity(judge[1], file)
    predict = loading.predict_use

    def as_if_it_did_not_fit(*arguments):
        return predict(*arguments) if len(arguments) > 4 else SimpleNamespace(total=10**12)

    monkeypatch.setattr(loading, "predict_use", as_if_it_did_not_fit)
    streamed = perplexity(load(judge[1], memory="8GB", scoring=True), file)
    assert streamed.loss == resident.loss and streamed.tokens == resident.tokens


def masked_loss(theirs, ids: list[int], context: int, stride: int) -> tuple[float, int]:
    """Nats and scored tokens by transformers' own loss: what a window has seen before is labelled −100."""
    nats, scored = 0.0, 0
    for begin, first, end in windows(len(ids) - 1, context, stride):
        tokens = torch.tensor([ids[begin : end + 1]])
        labels = tokens.clone()
        labels[:, : first - begin + 1] = -100
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            nats += float(theirs(tokens, labels=labels).loss) * count
        scored += count
    return nats, scored


@pytest.mark.parametrize(("context", "stride"), [(64, 64), (16, 16), (16, 8), (16, 1)])
def test_windows_have_the_loss_that_transformers_gives_with_what_was_seen_masked(judge, tmp_path, context, stride):
    theirs, folder = judge
    (tmp_path / "long.txt").write_text(TEXTS[3])
    tokenizer = LanguageModel.load(folder).tokenizer
    nats, scored = masked_loss(theirs, [tokenizer.bos_id, *tokenizer.encode(TEXTS[3])], context, stride)
    result = perplexity(folder, tmp_path / "long.txt", context=context, stride=stride)
    assert result.tokens == scored > 32
    assert result.loss == pytest.approx(nats / scored, abs=1e-4)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / len(TEXTS[3].encode()), abs=1e-4)


def test_texts_are_read_from_every_kind_of_source(judge, tmp_path):
    import gzip

    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet
    import zstandard

    texts, model = TEXTS[:2], LanguageModel.load(judge[1])
    rows = "".join(json.dumps({"body": text}) + "\n" for text in texts).encode()
    table = pyarrow.table({"body": texts, "number": [1, 2]})
    (tmp_path / "rows.jsonl.zst").write_bytes(zstandard.compress(rows))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(rows))
    (tmp_path / "rows.json").write_text(json.dumps([{"body": text} for text in texts]))
    pyarrow.csv.write_csv(table, tmp_path / "rows.csv")
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    for part, text in zip(("a", "b"), texts, strict=True):
        (tmp_path / "folder" / part).mkdir(parents=True)
        (tmp_path / "folder" / part / "text.txt").write_text(text)
    expected = perplexity(model, write_texts(tmp_path, texts))
    for name in ("rows.jsonl.zst", "rows.jsonl.gz", "rows.json", "rows.csv", "rows.parquet"):
        found = perplexity(model, tmp_path / name, columns={"text": "body"})
        assert (found.loss, found.tokens, found.bytes) == (expected.loss, expected.tokens, expected.bytes), name
    folder = perplexity(model, tmp_path / "folder")
    assert (folder.documents, folder.bytes) == (2, expected.bytes)
    assert folder.loss == pytest.approx(expected.loss, rel=1e-6)


def test_an_adapter_is_measured_as_the_model_that_it_makes(base, examples, tmp_path):
    from shoestring.finetuning.job import finetune
    from shoestring.models.peft_folder import merge_folder
    from tests.finetuning.tiny import SHORT

    settings = {**SHORT, "train.steps": 2, "train.answers": 0, "out": str(tmp_path / "run")}
    finetune(base, examples, overrides=settings)
    file = write_texts(tmp_path)
    found = perplexity(tmp_path / "run", file)
    assert found.loss == pytest.approx(perplexity(merge_folder(tmp_path / "run"), file).loss, rel=1e-6)
    assert found.loss != pytest.approx(perplexity(base, file).loss, rel=1e-6)


def test_weights_kept_for_decoding_have_the_perplexity_of_what_they_stand_for(judge, tmp_path):
    _, folder = judge
    kept, dense = LanguageModel.load(folder, weights="int4"), LanguageModel.load(folder)
    exact = perplexity(dense, write_texts(tmp_path))
    with torch.no_grad():
        for name, linear in kept.decoder.named_modules():
            if isinstance(linear, DecodingLinear):
                dense.decoder.get_submodule(name).weight.copy_(linear.to_linear().weight)
        dense.decoder.head.weight.copy_(weights_of(kept.decoder.head.matrix)[:, :24])  # and the embedding
    found, wanted = perplexity(kept, write_texts(tmp_path)), perplexity(dense, write_texts(tmp_path))
    assert found.loss == pytest.approx(wanted.loss, rel=0.005) and found.tokens == wanted.tokens
    assert abs(wanted.loss - exact.loss) > 0.005 * exact.loss
