"""The folders beside this file: a tiny Llama, quantized by the libraries of GPTQ and AWQ themselves, and the logits
that they give for it. Imports nothing of ours; run by an interpreter that has the libraries:

    PYTHON tests/models/other_libraries/make.py gptqmodel gptq 4 32
    PYTHON tests/models/other_libraries/make.py gptqmodel awq 4 32
    PYTHON tests/models/other_libraries/make.py auto-round gptq 4 32
    PYTHON tests/models/other_libraries/make.py auto-round awq 4 32

LIBRARY METHOD BITS GROUP. Each makes LIBRARY-METHOD-BITS/: config.json and model.safetensors as the library wrote them,
but for the name of a temporary folder; logits.safetensors, tokens and the logits that gptqmodel, which reads them all,
gives for them; made.json with the versions.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # of gptqmodel 7.7.0, which fails on two cores without it
VOCABULARY = 64
TOKENS_BT = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))


def dense(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).half().save_pretrained(folder)
    words = {f"w{n}": n for n in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="w0", bos_token="w0", eos_token="w1", pad_token="w1"
    ).save_pretrained(folder)


def rows() -> list[list[int]]:
    random = torch.Generator().manual_seed(2)
    return [torch.randint(2, VOCABULARY, (64,), generator=random).tolist() for _ in range(32)]


def by_gptqmodel(source: Path, out: Path, method: str, bits: int, group: int) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    settings: dict[str, Any] = {"bits": bits, "group_size": group, "desc_act": False, "sym": False}
    if method == "awq":
        settings |= {"quant_method": "awq", "format": "gemm"}
    model = GPTQModel.load(str(source), QuantizeConfig(**settings))
    data = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows()]
    model.quantize(data, batch_size=1)
    model.save(str(out))


def read(folder: Path, method: str) -> Any:
    """By gptqmodel, in plain torch. It computes in half precision, with AWQ always: so scales are made float32, and of
    AWQ the weights too, by the library's own function."""
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    backend = BACKEND.TORCH_AWQ if method == "awq" else BACKEND.TORCH
    model = GPTQModel.load(str(folder), device="cpu", backend=backend, dtype=torch.float16).model.float()
    for name, module in list(model.named_modules()) if method == "awq" else []:
        if hasattr(module, "qweight"):
            scales = module.scales.float()
            weight_IO = dequantize_gemm(module.qweight, module.qzeros, scales, module.bits, module.group_size)
            linear = torch.nn.Linear(*weight_IO.shape, bias=False)
            linear.weight.data = weight_IO.t().contiguous()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, linear)
    return model


def by_auto_round(source: Path, out: Path, method: str, bits: int, group: int) -> None:
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    data = [torch.tensor([ids]) for ids in rows()]
    made = AutoRound(
        model, tokenizer, bits=bits, group_size=group, sym=method == "gptq", iters=4, dataset=data, seqlen=64,
        nsamples=len(data), batch_size=4, device_map="cpu",
    )  # fmt: skip
    made.quantize_and_save(str(out), format=f"auto_{method}")


def main(library: str, method: str, bits: int, group: int) -> None:
    here = Path(__file__).parent / f"{library}-{method}-{bits}"
    with tempfile.TemporaryDirectory() as place:
        dense(Path(place) / "dense")
        make = by_gptqmodel if library == "gptqmodel" else by_auto_round
        make(Path(place) / "dense", Path(place) / "out", method, bits, group)
        out = next((Path(place) / "out").rglob("config.json")).parent
        model = read(out, method)
        with torch.no_grad():
            logits = model(TOKENS_BT).logits.float()
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        shutil.copy(out / "model.safetensors", here / "model.safetensors")
        config = (out / "config.json").read_text()
        (here / "config.json").write_text(re.sub(rf'"{tempfile.gettempdir()}[^"]*"', "null", config))
    save_file({"tokens": TOKENS_BT, "logits": logits.contiguous()}, here / "logits.safetensors")
    versions = {name: importlib.metadata.version(name) for name in {library, "gptqmodel", "transformers", "torch"}}
    made = {"arguments": sys.argv[1:], **dict(sorted(versions.items()))}
    (here / "made.json").write_text(json.dumps(made, indent=1) + "\n")


main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
