"""The table of verbs, in the order of a model's life: what `shoestring` prints and where each verb lives.

A verb's module defines `app`, a cyclopts App. The module is imported only when its verb is typed, so a row
here costs the help nothing; a row is added together with the module, because a verb appears only when it
works.
"""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """One row: the word typed, its line in the overview, the module that defines it, one line of help."""

    name: str
    group: str
    help: str
    module: str = ""

    @property
    def module_name(self) -> str:
        return f"shoestring.cli.{self.module or self.name}"


GROUPS = ("Start", "Data", "Train", "Shrink", "Measure", "Use")

VERBS = (
    Verb("quickstart", "Start", "train a small model and talk to a real one, in a few minutes"),
    Verb("get", "Start", "fetch a model, once, into the cache"),
    Verb("recipe", "Start", "list, show and check recipes"),
    Verb("doctor", "Start", "what this machine has, and what that means for training"),
    Verb("completion", "Start", "the script with which a shell completes verbs and flags"),
    Verb("tokenizer", "Data", "train a tokenizer on your text"),
    Verb("prepare", "Data", "turn documents into token shards"),
    Verb("data", "Data", "look at examples as a model learns them, count a corpus, make exercises"),
    Verb("pretrain", "Train", "train a model from a recipe"),
    Verb("finetune", "Train", "teach a model your examples"),
    Verb("join", "Train", "hold some layers of a model that is trained on several machines"),
    Verb("distill", "Train", "teach a smaller model what a larger one predicts"),
    Verb("search", "Train", "search a recipe's settings for the best, by many short runs"),
    Verb("merge", "Shrink", "fold an adapter into its base model"),
    Verb("quantize", "Shrink", "keep a model's weights in few bits"),
    Verb("factorize", "Shrink", "make a model's matrices products of thin ones"),
    Verb("prune", "Shrink", "take out of a model what counts least"),
    Verb("compress", "Shrink", "try several ways to make a model smaller, and keep the best that meets a target"),
    Verb("evaluate", "Measure", "what a model can do, in many categories, scored by programs"),
    Verb("plan", "Measure", "what a job would take of memory and time, in every form, and what fits"),
    Verb("perplexity", "Measure", "how surprised a model is by text, per token and per byte"),
    Verb("compare", "Measure", "runs side by side: recipes, curves, scores with paired tests"),
    Verb("report", "Measure", "what a run did, as one page for a browser; several runs over one another"),
    Verb("model", "Measure", "what a model is made of, and what it costs"),
    Verb("generate", "Use", "continue a text"),
    Verb("chat", "Use", "talk with a model"),
    Verb("serve", "Use", "answer over HTTP, as OpenAI's API does"),
    Verb("export", "Use", "write a model for other tools: GGUF for llama.cpp and Ollama, ONNX"),
)


def overview(verbs: tuple[Verb, ...] = VERBS) -> str:
    """The page that `shoestring` and `shoestring --help` print."""
    lines = ["Language models on a shoestring.", ""]
    for group in GROUPS:
        names = [verb.name for verb in verbs if verb.group == group]
        if names:
            lines.append(f"{group:<10}" + "".join(f"{name:<13}" for name in names).rstrip())
    lines += ["", "shoestring VERB --help shows a verb, with two examples that work as they stand."]
    return "\n".join(lines)
