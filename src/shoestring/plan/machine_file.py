"""A machine in a file: what `shoestring doctor --save` writes of one, so that others can plan for it. Torch-free.

    version: 1
    processor: AMD EPYC
    memory: 8000000000
    products: {float32: 2.1e11, bfloat16: 1.9e11}   # operations a second
    process: {decoding: 260000000, training: 290000000, checkpointing: 400000000}

Sizes are bytes, and may be written as "8GB" by hand; speeds are bytes or operations a second, measured there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from shoestring.core.config import Config, dump_yaml, load_config
from shoestring.core.errors import ConfigError
from shoestring.core.files import atomic_write, check_place
from shoestring.core.units import Bytes
from shoestring.core.yaml_document import read_document
from shoestring.plan.shapes import Machine

VERSION = 1
Size = Annotated[Bytes, Field(gt=0, lt=10**18)]
Speed = Annotated[float, Field(ge=1e3, le=1e21)]  # in a second
ProcessKind = Literal["decoding", "training", "checkpointing"]


class ProductsConfig(Config):
    """Operations a second of large matrix products, by number format; null: not measured."""

    float32: Speed
    bfloat16: Speed
    float16: Speed | None = None


class ProcessConfig(Config):
    """What a process takes before it has a model, with all libraries loaded that its work needs."""

    decoding: Size = Field(description="reading and writing text")
    training: Size
    checkpointing: Size = Field(description="training that may compute blocks again, or keep to a budget")


class DiskConfig(Config):
    """Of the cache."""

    free: Bytes = Field(ge=0, lt=10**18)
    read_speed: Speed


class GPUConfig(Config):
    """memory: all that it has, of which other programs may hold some."""

    name: str
    memory: Size
    memory_bandwidth: Speed
    products: ProductsConfig


class MachineConfig(Config):
    """One machine, as it was when this was written."""

    version: Literal[1] = 1
    processor: str
    cores: int = Field(gt=0, le=2**20)
    threads: int = Field(gt=0, le=1024, description="that torch computes with")
    memory: Size = Field(description="of the machine, or of its container")
    memory_bandwidth: Speed
    products: ProductsConfig
    int8_gain: float = Field(ge=1, le=1000, description="of products in int8 over float32")
    onednn: bool = Field(description="whether that library multiplies large matrices of float32")
    process: ProcessConfig
    disk: DiskConfig
    gpu: GPUConfig | None = None
    torch: str = Field(description="version")

    def processor_for(self, compute: str, process: int) -> Machine:
        """For products in this format, as the plan takes it; of one that was not measured, flops are infinite."""
        return Machine(
            process, self._flops(self.products, compute), self.disk.read_speed, self.int8_gain, self.memory,
            self.threads, self.onednn, bandwidth=self.memory_bandwidth,
        )  # fmt: skip

    def gpu_for(self, compute: str, process: int) -> Machine:
        """The same for work on its GPU, or on one that nobody has described."""
        if self.gpu is None:
            return Machine(process, math.inf, self.disk.read_speed, threads=0, gpu=True)
        return Machine(
            process, self._flops(self.gpu.products, compute), self.disk.read_speed, total=self.gpu.memory, threads=0,
            bandwidth=self.gpu.memory_bandwidth, gpu=True,
        )  # fmt: skip

    def process_of(self, kind: ProcessKind) -> int:
        return getattr(self.process, kind)

    @property
    def bfloat16_gain(self) -> float:
        """Over float32, of the processor's products."""
        return self.products.bfloat16 / self.products.float32

    @property
    def gpu_bfloat16_gain(self) -> float:
        """The same of the GPU's; of one that nobody has described, as if they were much faster."""
        return math.inf if self.gpu is None else self.gpu.products.bfloat16 / self.gpu.products.float32

    def _flops(self, products: ProductsConfig, compute: str) -> float:
        found = products.float32 if compute == "int8" else getattr(products, compute)
        return found or math.inf


def read_machine(path: str | Path) -> MachineConfig:
    """Raises ConfigError for what is no machine of this version."""
    document = read_document(path)
    version = document.values.get("version")
    if version is None:
        raise ConfigError(
            "this describes no machine: it has no version", str(path), "shoestring doctor --save laptop.yaml writes one"
        )
    if version != VERSION:
        raise ConfigError(
            f"this machine is described in version {version}, and this Shoestring reads version {VERSION}",
            document.place("version"),
            "write it anew on that machine: shoestring doctor --save laptop.yaml",
        )
    return load_config(MachineConfig, document)


def save_machine(machine: MachineConfig, path: str | Path) -> None:
    """Raises RunError."""
    with atomic_write(path) as file:
        file.write(dump_yaml(machine))


def check_saving(path: str | Path) -> None:
    """Raises ConfigError where another file stands than one that describes a machine, RunError where none can."""
    place = Path(path)
    check_place(place)
    if not place.exists():
        return
    try:
        values = {} if place.is_dir() else read_document(place).values
    except ConfigError:
        values = {}
    if not {"version", "processor", "products"} <= set(values):
        raise ConfigError("this is there already, and describes no machine", str(path), "choose another place")
