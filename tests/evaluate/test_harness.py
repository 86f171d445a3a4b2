"""lm-evaluation-harness through our adapter, beside its own Hugging Face backend on the same weights."""

import json

import pytest
import torch
import transformers
from lm_eval import evaluator, simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from shoestring.core.errors import ConfigError
from shoestring.data.train_tokenizer import train_tokenizer
from shoestring.evaluate.harness import harness_model, sampling_options
from shoestring.evaluate.log_likelihood import log_likelihoods
from shoestring.generate.language_model import LanguageModel
from tests.test_readme import ROOT, blocks

TEXTS = ["one and two and three and four and five", "a", "two and one", "of three and four and of five and six " * 4]
PAIRS = [
    ("one and two and", " three"), ("one and two and", " four and five"), ("one and two and ", "three"),
    ("", "one and two"), ("two", "2"), ("of three and four and " * 9, " six and two"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def no_network():
    with pytest.MonkeyPatch.context() as patch:
        for module in ("huggingface_hub.constants", "datasets.config"):
            patch.setattr(f"{module}.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def both(no_network, tmp_path_factory):
    """A tiny random Qwen2 of 48 positions: our adapter around it, and the harness's own backend."""
    folder = tmp_path_factory.mktemp("harness")
    tokenizer = train_tokenizer(TEXTS, 300)
    torch.manual_seed(3)
    config = transformers.Qwen2Config(
        vocab_size=tokenizer.vocabulary_size, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=48,
        tie_word_embeddings=True, initializer_range=0.4,
    )  # fmt: skip
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    tokenizer.save(folder)
    judge = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(folder), batch_size=2,
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder), max_length=48, device="cpu",
    )  # fmt: skip
    return harness_model(LanguageModel.load(folder)), judge


def asked(kind, *arguments):
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def close(ours, theirs):
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)
    assert [bool(greedy) for _, greedy in ours] == [bool(greedy) for _, greedy in theirs]


def test_log_likelihoods_are_those_of_its_own_backend(both):
    """Also of an empty context, of one that ends in a space, and of one that is longer than the model's."""
    found, expected = (model.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True) for model in both)
    close(found, expected)
    assert len({round(value, 3) for value, _ in found}) > 4  # a tie that would hide an order


def test_log_likelihoods_of_texts_in_windows_are_too(both):
    texts = [(text,) for text in ("one", TEXTS[0], TEXTS[3], TEXTS[3] * 3)]
    found, expected = (
        model.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True) for model in both
    )
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-6)


def test_greedy_text_up_to_a_stop_is_too(both, capsys, monkeypatch):
    short, long = {"until": ["and"], "max_gen_toks": 12}, {"until": [], "max_gen_toks": 20, "do_sample": False}
    requests = [(context, options) for context in ("one and", "two", TEXTS[3]) for options in (short, long)]
    found, expected = (model.generate_until(asked("generate_until", *requests), disable_tqdm=True) for model in both)
    monkeypatch.setattr("shoestring.evaluate.harness._CACHED", 50)  # one or two at a time
    assert both[0].generate_until(asked("generate_until", *requests)) == found
    assert found == expected
    assert all(found) and not any("and" in text for text in found[::2])
    assert "1 context longer than 28 tokens, at the beginning" in capsys.readouterr().err


def test_what_is_together_in_a_batch_changes_nothing(both, monkeypatch):
    language = LanguageModel.load(both[0].tokenizer_name)
    rows = [(list(range(5, 5 + length)), count) for length in range(2, 30, 3) for count in (1, length - 1)]
    together = log_likelihoods(language, rows)
    monkeypatch.setattr("shoestring.evaluate.log_likelihood._LOGITS", 3 * 300)  # of three tokens at once
    language.at_once = 1
    alone = log_likelihoods(language, rows)
    assert [value for value, _ in alone] == pytest.approx([value for value, _ in together], abs=1e-4)
    assert [greedy for _, greedy in alone] == [greedy for _, greedy in together]
    assert log_likelihoods(language, []) == [] and log_likelihoods(language, [([5], 0), ([], 0)]) == [(0.0, True)] * 2


def test_of_equally_likely_tokens_the_first_is_the_likeliest(both):
    language = LanguageModel.load(both[0].tokenizer_name)
    with torch.no_grad():
        language.decoder.embedding.weight[:] = language.decoder.embedding.weight[:1]  # tied: the head's rows are alike
    (zero, first), (one, second) = log_likelihoods(language, [([5, 6, 0], 1), ([5, 6, 1], 1)])
    assert zero == pytest.approx(one) and (first, second) == (True, False)


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A task of twelve questions in two files, put to a model: what the harness finds."""
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # asks the system for seconds
    rows = [
        {"question": f"{TEXTS[number % 3]} {number}", "choices": [" one", " two and three", " six"], "gold": number % 3}
        for number in range(12)
    ]
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.yaml").write_text(
        f"""task: words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path / "rows.json"}
  cache_dir: {tmp_path}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
    )
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def ask(model, **settings):
        return simple_evaluate(
            model=model, tasks=["words"], task_manager=tasks, bootstrap_iters=0, log_samples=True, verbosity="ERROR",
            **settings,
        )  # fmt: skip

    return ask


def test_a_local_task_has_the_same_scores_without_a_network(both, words):
    scores = []
    for model in both:
        found = words(model)
        likelihoods = [float(reply[0]) for sample in found["samples"]["words"] for reply in sample["filtered_resps"]]
        scores.append((likelihoods, found["results"]["words"]["acc,none"], found["results"]["words"]["acc_norm,none"]))
    (ours, *own), (theirs, *judged) = scores
    assert len(ours) == 36 and ours == pytest.approx(theirs, abs=1e-4) and own == judged


def test_a_task_is_put_in_the_models_own_chat_template(base, words):
    model = harness_model(LanguageModel.load(base))
    (sample, *_) = words(model, apply_chat_template=True, limit=1)["samples"]["words"]
    asked = sample["arguments"][0][0]
    assert "<|im_start|>user\n" in asked and asked.endswith("<|im_start|>assistant\n")
    assert model.tok_encode(asked) == model.tok_encode(asked, add_special_tokens=False)
    assert model.chat_template(True) and model.chat_template() is None


def test_what_cannot_be_done_is_refused_by_name(both):
    ours = both[0]
    with pytest.raises(ConfigError, match="num_beams: not done here"):
        sampling_options({"until": ["\n"], "num_beams": 4})
    with pytest.raises(ConfigError, match="max_length 49: from 2 to 48"):
        harness_model(LanguageModel.load(ours.tokenizer_name), max_length=49)
    with pytest.raises(ConfigError, match="longer than the 48"):
        ours.loglikelihood(asked("loglikelihood", ("one", "one and two " * 60)))
    with pytest.raises(ConfigError, match="leave no room"):
        ours.generate_until(asked("generate_until", ("one", {"max_gen_toks": 48})))
    assert sampling_options({"temperature": 0.5, "until": "x", "max_new_tokens": 9})["max_tokens"] == 9
    assert sampling_options({"temperature": 0.5, "until": "x"})["temperature"] == 0.5
    assert sampling_options({"do_sample": True, "num_beams": 1, "top_p": 0.9})["temperature"] == 1.0
    assert sampling_options({"temperature": 0.5, "do_sample": False})["temperature"] == 0.0


def test_the_example_of_the_docs_runs(both, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)
    monkeypatch.chdir(tmp_path)
    ((_, content),) = [found for found in blocks(ROOT / "docs/evaluation.md", "python") if "lm_eval" in found[1]]
    content = content.replace("smollm2-135m", both[0].tokenizer_name)
    content = content.replace("include_path=", "include_defaults=False, include_path=")
    exec(compile(content, "evaluation.md", "exec"), {})
    assert float(capsys.readouterr().out.split()[-1]) in (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
