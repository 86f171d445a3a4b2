"""Which tensor of which file belongs to which parameter: a model folder's weights, matched with its config.

Every tensor is accounted for before any is read, so a missing, unexpected or misshapen one is a sentence and not half a
model. `models.folder` reads all of them into memory; layer streaming reads a few at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from shoestring.core.errors import ModelFileError
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.families.family import Family
from shoestring.models.families.registry import family_named, read_config, read_json, read_quantization
from shoestring.models.packed_files import PackedPlace, take_packed
from shoestring.models.place import Place
from shoestring.models.rounded_rows import RoundedRows, take_rounded
from shoestring.models.weights import TensorFile

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Buffers that old files hold and that are computed from the config.
_COMPUTED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_COMPARED = 1 << 12  # rows compared at a time
_DENSE = "use the dense model there"
_MISMATCH = "config.json and the weights do not belong together; fetch the model again"


class WeightFiles:
    """The open weight files of a model folder; a context manager. Raises ModelFileError as `load_model` does.

    config: with a head that the files hold untied. places: by the decoder's names, in the order of the files. packed:
    the linears that are quantized, which places lack; a folder with such is refused where they are not asked for.
    rounded: embedding and head that are, which places have as the matrices of float32 that they stand for. held:
    whether a parameter is needed, by name; then places are of those alone, and the folder may lack others.
    """

    def __init__(self, folder: str | Path, packed: bool = False, held: Callable[[str], bool] | None = None):
        folder = Path(folder)
        config, scheme = read_config(folder), read_quantization(folder)
        if scheme is not None and not packed:
            raise ModelFileError(f"the weights are quantized ({scheme.layout})", str(folder), _DENSE)
        family = family_named(read_json(folder / "config.json").get("model_type"))
        self.files = _tensor_files(folder, whole=held is None)
        where = {name: Place("", file, name) for file in self.files for name in file.infos}
        try:
            self.config = _settle_head(config, family, where)
            _check_size(self.config, where, folder, whole=held is None)
            parameters: dict[str, Tensor] = dict(build(self.config, device="meta").named_parameters())
            if held is not None:
                parameters = {name: parameter for name, parameter in parameters.items() if held(name)}
            self.packed: dict[str, PackedPlace] = {}
            self.rounded: dict[str, RoundedRows] = {}
            if scheme is not None:
                self.packed = take_packed(scheme, parameters, family, where)
            if scheme is not None and scheme.ends:
                self.rounded = take_rounded(family, self.config.tied_head, where)
            for linear in self.packed:
                del parameters[f"{linear}.weight"]
            names = _match(parameters, family, where, folder, whole=held is None)
        except BaseException:
            self.close()
            raise
        self.places = {parameter: where[name]._replace(parameter=parameter) for name, parameter in names}

    def dtype_of(self, parameter: str) -> torch.dtype:
        """What a parameter is stored in; where that is 8 bits, its scales."""
        place = self.places[parameter]
        return place.file.scale.info.dtype if isinstance(place.file, RoundedRows) else place.info.dtype

    def close(self) -> None:
        for file in self.files:
            file.__exit__()

    def __enter__(self) -> WeightFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def weight_paths(folder: str | Path) -> list[Path]:
    """The files that hold a model's weights. Raises ModelFileError."""
    files = _tensor_files(Path(folder))
    for file in files:
        file.__exit__()
    return [file.path for file in files]


def _tensor_files(folder: Path, whole: bool = True) -> list[TensorFile]:
    """The open files that hold the weights, each with only the tensors that the index gives it. whole: whether all must
    be there."""
    if (folder / WEIGHTS).is_file():
        return [TensorFile(folder / WEIGHTS)]
    if not (folder / INDEX).is_file():
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        if pickled:
            raise ModelFileError(
                f"the weights are pickled ({pickled[0].name}), and a pickle can run any program",
                str(folder),
                "use the model's safetensors files",
            )
        raise ModelFileError(f"no {WEIGHTS} in this folder", str(folder), "fetch or save the model again")
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ModelFileError("weight_map is not an object of file names", str(index), "fetch the model again")
    files: list[TensorFile] = []
    try:
        for shard in sorted(set(weight_map.values())):
            if PurePosixPath(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
                raise ModelFileError(f"{shard!r} is not the name of a safetensors file beside it", str(index))
            if not os.path.isfile(folder / shard):
                if not whole:
                    continue
                raise ModelFileError(f"the file {shard} is missing", str(index), "fetch the model again")
            file = TensorFile(folder / shard)
            files.append(file)
            listed = {name for name, home in weight_map.items() if home == shard}
            if whole and (absent := sorted(listed - file.infos.keys())):
                raise ModelFileError(
                    f"tensor {absent[0]} is not in {shard}", str(index), "fetch the model again"
                )
            file.infos = {name: file.infos[name] for name in file.infos if name in listed}
    except BaseException:
        for file in files:
            file.__exit__()
        raise
    return files


def _settle_head(config: ModelConfig, family: Family, where: dict[str, Place]) -> ModelConfig:
    """Untie a head that the config ties and the file holds with other values; drop one that is equal."""
    embedding, head = (family.tensor_name(f"{part}.weight") for part in ("embedding", "head"))
    if not config.tied_head or head not in where:
        return config
    if embedding not in where:  # the same matrix under its other name
        where[embedding] = where.pop(head)
        return config
    if _same(where[embedding], where[head]):
        where.pop(head)
        return config
    return config.model_copy(update={"tied_head": False})


def _check_size(config: ModelConfig, where: dict[str, Place], folder: Path, whole: bool) -> None:
    """First of all: an absurd config must not make an absurd number of modules, or overflow a shape."""
    held = {match.group(1) for name in where if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    if config.unique_layers < len(held) or (whole and config.unique_layers != len(held)):
        counts = f"config.json says {config.unique_layers:,} layers, the weights hold {len(held):,}"
        raise ModelFileError(counts, str(folder), _MISMATCH)
    if config.parameter_count() > 2**48:
        raise ModelFileError(
            f"config.json asks for {config.parameter_count():,} parameters", str(folder), _MISMATCH
        )


def _match(
    parameters: dict[str, Tensor], family: Family, where: dict[str, Place], folder: Path, whole: bool
) -> list[tuple[str, str]]:
    """(name in the files, name in the decoder) in the order of the files; every tensor of a whole model accounted for.
    """
    wanted = {family.tensor_name(name): name for name in parameters}
    if missing := [name for name in wanted if name not in where]:
        raise ModelFileError(f"{_some(missing)} missing from the weights", str(folder), _MISMATCH)
    unknown = [name for name in where if name not in wanted and not _COMPUTED.fullmatch(name)]
    if unknown and whole:
        message = f"{_some(unknown)} not part of a {family.model_type} model of this config"
        raise ModelFileError(message, str(folder), _MISMATCH)
    for name, parameter in wanted.items():
        info, shape = where[name].info, tuple(parameters[parameter].shape)
        if info.shape != shape:
            message = f"tensor {name} has shape {list(info.shape)}, config.json asks for {list(shape)}"
            raise ModelFileError(message, str(where[name].file.path), _MISMATCH)
        if info.dtype not in _FLOATS:
            kind = str(info.dtype).removeprefix("torch.")
            message = f"tensor {name} is {kind}: quantized weights cannot be read"
            raise ModelFileError(message, str(where[name].file.path), "use the model's unquantized weights")
    order = sorted(wanted, key=lambda name: (str(where[name].file.path), where[name].info.offset))
    return [(name, wanted[name]) for name in order]


def _some(names: list[str]) -> str:
    if len(names) == 1:
        return f"tensor {names[0]} is"
    return f"{len(names)} tensors ({names[0]}, {names[1]}{', ...' if len(names) > 2 else ''}) are"


def _same(one: Place, other: Place) -> bool:
    """Whether two matrices hold the same numbers, read piece by piece."""
    first, second = one.info, other.info
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    rows = first.shape[0]
    return all(
        torch.equal(one.file.read_rows(one.tensor, start, end), other.file.read_rows(other.tensor, start, end))
        for start in range(0, rows, _COMPARED)
        for end in [min(start + _COMPARED, rows)]
    )
