"""Quantized linears in a model folder, as compressed-tensors names and shapes their tensors.

A linear NAME with weight [O, I], b bits and G groups has, in place of NAME.weight:

    pack-quantized   NAME.weight_packed int32 [O, ⌈I·b/32⌉], NAME.weight_scale [O, G], NAME.weight_shape int64 [2]
    int-quantized    NAME.weight int8 [O, I], NAME.weight_scale [O, G]

and where its grid is not symmetric NAME.weight_zero_point: int8 [O, G], packed along O to int32 [⌈O·b/32⌉, G].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shoestring.core.errors import ModelFileError
from shoestring.models.families.family import Family
from shoestring.models.gptq_files import fill_others, take_others
from shoestring.models.packed_place import BROKEN, SCALES, PackedPlace, check_division, taken, with_scale
from shoestring.models.place import Place
from shoestring.models.quantization import Scheme
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.packed import PackedLinear
from shoestring.nn.quantized.packing import pack, unpack, words


def take_packed(
    scheme: Scheme, parameters: dict[str, Tensor], family: Family, where: dict[str, Place]
) -> dict[str, PackedPlace]:
    """The quantized linears by their names in the decoder, their tensors taken out of `where`.

    parameters: of the decoder, by name. where: by the names in the files. Raises ModelFileError for parts that are
    missing or misshapen.
    """
    found = {}
    for parameter, weight in parameters.items():
        if not (parameter.startswith("blocks.") and parameter.endswith(".weight") and weight.dim() == 2):
            continue
        name = family.tensor_name(parameter).removesuffix(".weight")
        if scheme.layout != "compressed-tensors":
            if f"{name}.qweight" in where:
                found[parameter.removesuffix(".weight")] = take_others(scheme, name, tuple(weight.shape), where)
        elif f"{name}.weight_packed" in where:
            config = _config_of(scheme, name, tuple(weight.shape), where, in_words=True)
            found[parameter.removesuffix(".weight")] = _in_words(config, name, tuple(weight.shape), where)
        elif f"{name}.weight_scale" in where:
            config = _config_of(scheme, name, tuple(weight.shape), where, in_words=False)
            found[parameter.removesuffix(".weight")] = _in_bytes(config, name, tuple(weight.shape), where)
    return found


def _config_of(
    scheme: Scheme, name: str, shape: tuple[int, ...], where: dict[str, Place], in_words: bool
) -> PackedConfig:
    """The one whose tensors have these shapes; where none has, the first: reading then says what is wrong. Raises
    ModelFileError where several have."""
    if not scheme.others:
        return scheme.config
    outputs, inputs = shape
    codes, scale = where[f"{name}.weight_packed" if in_words else f"{name}.weight"], where.get(f"{name}.weight_scale")

    def has(config: PackedConfig) -> bool:
        columns = words(inputs, config.bits) if in_words else inputs
        return (
            codes.info.shape == (outputs, columns)
            and (config.group is None or inputs % config.group == 0)
            and scale is not None and scale.info.shape == (outputs, config.groups(inputs))
            and config.symmetric != (f"{name}.weight_zero_point" in where)
        )  # fmt: skip

    found = [config for config in (scheme.config, *scheme.others) if has(config)]
    if len(found) > 1:
        message = f"config.json has several ways to keep a linear, and the tensors of {name} do not tell which is its"
        raise ModelFileError(message, str(codes.file.path), "use the model's unquantized weights")
    return found[0] if found else scheme.config


def _in_words(config: PackedConfig, name: str, shape: tuple[int, ...], where: dict[str, Place]) -> PackedPlace:
    outputs, inputs = shape
    codes = taken(f"{name}.weight_packed", (outputs, words(inputs, config.bits)), (torch.int32,), where)
    scale = _scale(config, name, shape, codes, where)
    told = taken(f"{name}.weight_shape", (2,), (torch.int64,), where)
    if told.file.read(told.tensor).tolist() != [outputs, inputs]:
        raise ModelFileError(f"{told.tensor} says another shape than {[outputs, inputs]}", str(told.file.path), BROKEN)
    zero = None
    if not config.symmetric:
        rows = words(outputs, config.bits)
        zero = taken(f"{name}.weight_zero_point", (rows, scale.info.shape[1]), (torch.int32,), where)
    return PackedPlace("compressed-tensors", with_scale(config, scale), codes, scale, zero)


def _in_bytes(config: PackedConfig, name: str, shape: tuple[int, ...], where: dict[str, Place]) -> PackedPlace:
    codes = taken(f"{name}.weight", shape, (torch.int8,), where)
    scale = _scale(config, name, shape, codes, where)
    zero = None
    if not config.symmetric:
        zero = taken(f"{name}.weight_zero_point", scale.info.shape, (torch.int8,), where)
    return PackedPlace("compressed-tensors", with_scale(config, scale), codes, scale, zero)


def _scale(
    config: PackedConfig, name: str, shape: tuple[int, ...], codes: Place, where: dict[str, Place]
) -> Place:
    outputs, inputs = shape
    check_division(config, name, inputs, codes)
    return taken(f"{name}.weight_scale", (outputs, config.groups(inputs)), tuple(SCALES), where)


def put_packed(root: nn.Module, places: dict[str, PackedPlace]) -> None:
    """Replace the linears of these names by packed ones on the meta device, to be allocated and filled."""
    put_empty(root, {name: place.config for name, place in places.items()})


def put_empty(root: nn.Module, configs: Mapping[str, PackedConfig]) -> None:
    """The same of linears by name, kept so."""
    for name, config in configs.items():
        parent, _, last = name.rpartition(".")
        owner = root.get_submodule(parent)
        dense = getattr(owner, last)
        with torch.device("meta"):
            linear = PackedLinear(dense.in_features, dense.out_features, config, dense.bias is not None)
        setattr(owner, last, linear)


def fill_packed(linear: PackedLinear, place: PackedPlace, bias: Place | None) -> None:
    """Read a linear's tensors into its allocated buffers."""
    if linear.bias is not None and bias is not None:
        bias.file.read_into(bias.tensor, linear.bias)
    if place.layout != "compressed-tensors":
        fill_others(linear, place)
        return
    bits, outputs = linear.config.bits, linear.out_features
    if place.codes.info.dtype == torch.int32:
        place.codes.file.read_into(place.codes.tensor, linear.packed)
    else:
        linear.packed.copy_(pack(place.codes.file.read(place.codes.tensor), bits))
    place.scale.file.read_into(place.scale.tensor, linear.scale)
    if linear.zero is not None and place.zero is not None:
        stored = place.zero.file.read(place.zero.tensor)
        linear.zero.copy_(stored if stored.dtype == torch.int8 else unpack(stored.t(), bits, outputs).t())


def packed_tensors(linear: PackedLinear, name: str) -> dict[str, Tensor]:
    """What a folder keeps of a linear, on the CPU. name: that of its module there."""
    config = linear.config
    tensors = {f"{name}.weight_scale": linear.scale}
    if config.activations is None:
        tensors[f"{name}.weight_packed"] = linear.packed
        tensors[f"{name}.weight_shape"] = torch.tensor([linear.out_features, linear.in_features])
    else:
        tensors[f"{name}.weight"] = linear.codes()
    if linear.zero is not None:
        in_words = config.activations is None
        tensors[f"{name}.weight_zero_point"] = pack(linear.zero.t(), config.bits).t() if in_words else linear.zero
    if linear.bias is not None:
        tensors[f"{name}.bias"] = linear.bias
    return {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}


def packed_linears(root: nn.Module) -> dict[str, PackedLinear]:
    """By dotted name."""
    return {name: module for name, module in root.named_modules() if isinstance(module, PackedLinear)}


def rounds_inputs(root: nn.Module) -> bool:
    """Whether linears take their inputs in 8 bits: what they compute is then no product with one matrix."""
    return any(linear.config.activations is not None for linear in packed_linears(root).values())


def configs_of(linears: Mapping[str, PackedLinear]) -> dict[PackedConfig, list[str]]:
    """The linears by how they are kept, whatever their scales are kept in, the commonest way first."""
    found: dict[PackedConfig, list[str]] = {}
    for name, linear in linears.items():
        found.setdefault(linear.config.model_copy(update={"scale": "float32"}), []).append(name)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
