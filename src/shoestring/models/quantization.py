"""How a model folder says that its linears are in few bits: the section quantization_config of config.json. Torch-free.

Three ways are read: that of compressed-tensors (`models.compressed_tensors`), which is also written, and those of GPTQ
and AWQ. Read strictly: what would change the weights and is not done here is refused by name. Which linears are
quantized is not asked of the section: their tensors tell.
Formats: https://github.com/ModelCloud/GPTQModel, https://github.com/casper-hansen/AutoAWQ; auto-round writes both.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from shoestring.models import compressed_tensors
from shoestring.models.compressed_tensors import ANY, SECTION, check_fields, refused
from shoestring.nn.quantized.config import PackedConfig

Layout = Literal["compressed-tensors", "gptq", "gptq_v2", "awq"]


class Scheme(NamedTuple):
    """layout: how tensors are named and shaped; gptq keeps zero points less one, gptq_v2 as they are. config: but for
    the format of scales, which stands in the tensors alone. others: in which some linears are kept instead, told by the
    shapes of their tensors. ends: whether embedding or head are in 8 bits by rows."""

    layout: Layout
    config: PackedConfig
    others: tuple[PackedConfig, ...] = ()
    ends: bool = False


# What auto-round says of its way to the weights, and of activations and caches that it leaves as they are.
_AUTO_ROUND = (
    "autoround_version", "provider", "iters", "lr", "minmax_lr", "nsamples", "seqlen", "low_gpu_mem_usage",
    "enable_quanted_input", "enable_minmax_tuning", "enable_norm_bias_tuning", "gradient_accumulate_steps", "amp",
    "scale_dtype", "static_kv_granularity", "static_attention_granularity",
)  # fmt: skip
_GPTQ: dict[str, tuple[Any, ...]] = {
    "bits": (ANY,), "group_size": (ANY,), "sym": (True, False), "desc_act": (True, False), "lm_head": (False,),
    "checkpoint_format": ("gptq", "gptq_v2"), "format": ("gptq", "gptq_v2"), "pack_dtype": ("int32",), "dynamic": ({},),
    "rotation": (), "adapter": (), "is_marlin_format": (False,), "quant_method": ("gptq",),
    "data_type": ("int",),
}  # fmt: skip
# What says how the weights were found, or how they are to be computed with.
_GPTQ_TOLD = (
    "damp_percent", "damp_auto_increment", "act_group_aware", "static_groups", "true_sequential", "parallel_packing",
    "meta", "device", "model_name_or_path", "model_file_base_name", "backend", "use_cuda_fp16", "batch_size",
    "pad_token_id", "tokenizer", "dataset", "use_exllama", "disable_exllama", "exllama_config", "max_input_length",
    "cache_block_outputs", "modules_in_block_to_quantize", "module_name_preceding_first_block",
    "block_name_to_quantize", "to_quant_block_names", "model_seqlen", "mse", "v2", "v2_alpha", "v2_memory_device",
    "hyb_act", "hessian",
    "mock_quantization", "offload_to_disk", "offload_to_disk_path", "gptaq", "failsafe", "dense_vram_strategy",
    "pack_impl", "compute_device_filter", "auto_forward_data_parallel", "moe", "method", *_AUTO_ROUND,
)  # fmt: skip
_AWQ: dict[str, tuple[Any, ...]] = {
    "bits": (4,), "w_bit": (4,), "group_size": (ANY,), "q_group_size": (ANY,), "zero_point": (True, False),
    "version": ("gemm", "GEMM"), "quant_method": ("awq",), "format": ("gemm",), "checkpoint_format": ("gemm",),
    "desc_act": (False,), "lm_head": (False,), "pack_dtype": ("int32",), "sym": (True, False), "data_type": ("int",),
}  # fmt: skip
_AWQ_TOLD = (
    "modules_to_not_convert", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "backend",
    "modules_to_keep_in_fp32", "meta", "method", "to_quant_block_names", "batch_size", "dataset", *_AUTO_ROUND,
)  # fmt: skip


def split_config(values: dict[str, Any], where: str | None) -> tuple[dict[str, Any], Scheme | None]:
    """config.json's fields without this section, and what it says; None where there is none of these methods.

    Raises ModelFileError for what is not supported.
    """
    section = values.get(SECTION)
    method = section.get("quant_method") if isinstance(section, dict) else None
    if not isinstance(section, dict) or method not in (compressed_tensors.METHOD, "gptq", "awq"):
        return values, None
    rest = {name: value for name, value in values.items() if name != SECTION}
    if method == "gptq":
        return rest, _gptq(section, where)
    if method == "awq":
        return rest, _awq(section, where)
    config, *others = compressed_tensors.schemes(section, where)
    return rest, Scheme("compressed-tensors", config, tuple(others), compressed_tensors.names_ends(section))


def _gptq(section: dict[str, Any], where: str | None) -> Scheme:
    check_fields(section, _GPTQ | dict.fromkeys(_GPTQ_TOLD, (ANY,)), SECTION, where)
    bits = section.get("bits")
    if type(bits) is not int or bits not in (2, 3, 4, 8):
        raise refused("bits", bits, where, "2, 3, 4 or 8")
    layout: Layout = section.get("checkpoint_format") or section.get("format") or "gptq"
    return Scheme(layout, PackedConfig(bits=bits, group=_group(section, where, "group_size"), symmetric=False))


def _awq(section: dict[str, Any], where: str | None) -> Scheme:
    check_fields(section, _AWQ | dict.fromkeys(_AWQ_TOLD, (ANY,)), SECTION, where)
    if section.get("bits") is None and section.get("w_bit") is None:
        raise refused("bits", None, where, "4")
    name = "q_group_size" if section.get("group_size") is None else "group_size"
    return Scheme("awq", PackedConfig(bits=4, group=_group(section, where, name), symmetric=False))


def _group(section: dict[str, Any], where: str | None, name: str) -> int | None:
    size = section.get(name)
    if type(size) is not int or not (size == -1 or 0 < size < 2**31):
        raise refused(name, size, where, "a positive whole number, or -1")
    return None if size == -1 else size
