"""Shoestring: language models on the hardware a person owns.

`load(MODEL).generate(...)`, `load(MODEL).chat(...)`, `pretrain(recipe)`, `finetune(MODEL, data)`, `perplexity(MODEL,
data)`, `quantize(MODEL, out)`, `prune(MODEL, out)`, `factorize(MODEL, out)`, `distill(TEACHER, STUDENT, data)`,
`merge(ADAPTER, out)`, `compress(MODEL, out, target)`, `report(RUNS)`, `compare(RUNS)`, `prepare_dataset(data, MODEL)`,
`make_plan(RECIPE)`, which is `shoestring plan`, `finetune_over(MACHINES, MODEL, data)`,
`pretrain_over(MACHINES, recipe)`, `generate_over(MACHINES, MODEL, prompts)`, `perplexity_over(MACHINES, MODEL, data)`,
`evaluate_over(MACHINES, MODEL)` and `join(ADDRESS, TOKEN, NAME)` do what the commands do. They are looked up on first
use, so that `import shoestring` does not import torch.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from shoestring.compression.compress.job import compress as compress
    from shoestring.compression.distill.job import distill as distill
    from shoestring.compression.factorize.job import factorize as factorize
    from shoestring.compression.merge.job import merge as merge
    from shoestring.compression.prune.job import prune as prune
    from shoestring.compression.quantize.job import quantize as quantize
    from shoestring.evaluate.perplexity import perplexity as perplexity
    from shoestring.finetuning.examples import prepare_dataset as prepare_dataset
    from shoestring.finetuning.job import finetune as finetune
    from shoestring.forecast.plan import make_plan as make_plan
    from shoestring.laptops.asking import generate_over as generate_over
    from shoestring.laptops.join import join as join
    from shoestring.laptops.over import finetune_over as finetune_over
    from shoestring.laptops.over import pretrain_over as pretrain_over
    from shoestring.laptops.scoring import evaluate_over as evaluate_over
    from shoestring.laptops.scoring import perplexity_over as perplexity_over
    from shoestring.offload.load import load as load
    from shoestring.pretraining.job import pretrain as pretrain
    from shoestring.search.compare import compare as compare
    from shoestring.train.report.write import report as report

__version__ = "0.1.0"
# Where each name is defined; a test holds this table to the rooms' directions.
_HOMES = {
    "compare": "shoestring.search.compare",
    "compress": "shoestring.compression.compress.job",
    "distill": "shoestring.compression.distill.job",
    "evaluate_over": "shoestring.laptops.scoring",
    "factorize": "shoestring.compression.factorize.job",
    "finetune": "shoestring.finetuning.job",
    "finetune_over": "shoestring.laptops.over",
    "generate_over": "shoestring.laptops.asking",
    "join": "shoestring.laptops.join",
    "load": "shoestring.offload.load",
    "make_plan": "shoestring.forecast.plan",
    "merge": "shoestring.compression.merge.job",
    "perplexity": "shoestring.evaluate.perplexity",
    "perplexity_over": "shoestring.laptops.scoring",
    "prepare_dataset": "shoestring.finetuning.examples",
    "pretrain": "shoestring.pretraining.job",
    "pretrain_over": "shoestring.laptops.over",
    "prune": "shoestring.compression.prune.job",
    "quantize": "shoestring.compression.quantize.job",
    "report": "shoestring.train.report.write",
}
__all__ = [
    "__version__", "compare", "compress", "distill", "evaluate_over", "factorize", "finetune", "finetune_over",
    "generate_over", "join", "load", "make_plan", "merge", "perplexity", "perplexity_over", "prepare_dataset",
    "pretrain", "pretrain_over", "prune", "quantize", "report",
]  # fmt: skip


def __getattr__(name: str) -> _typing.Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
