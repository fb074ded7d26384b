"""What does a plan contain? Plans: sizes, time, memory and collectives, and their JSON."""

import dataclasses
from typing import Any

from sparsecod_jax import config
from sparsecod_jax.config.counts import Counts
from sparsecod_jax.plan.hlo import Traffic

Json = dict[str, Any]  # an object of JSON


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    arguments: int
    temporaries: int
    limit: float  # what a program may use there

    @property
    def peak(self) -> int:
        """The most at one time."""
        return self.arguments + self.temporaries

    def to_dict(self) -> Json:
        values = dataclasses.asdict(self)
        values["peak"] = self.peak
        return values


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler finds about the programs of a run."""

    checkpoint_bytes: int
    fits: bool = True
    compile_seconds: float = 0.0
    memory: Memory | None = None  # of the program that needs most
    collectives: dict[str, Traffic] | None = None  # per step and device, by kind
    reason: str | None = None  # why it does not fit

    def to_dict(self) -> Json:
        """Plain JSON values; what was not found out is left out."""
        values: Json = {
            "checkpoint_bytes": self.checkpoint_bytes,
            "fits": self.fits,
            "compile_seconds": self.compile_seconds,
        }
        if self.memory:
            values["memory"] = self.memory.to_dict()
        if self.collectives is not None:
            values["collectives"] = {}
            for kind, traffic in self.collectives.items():
                values["collectives"][kind] = dataclasses.asdict(traffic)
        if self.reason is not None:
            values["reason"] = self.reason
        return values

    @classmethod
    def from_dict(cls, values: Json) -> "Compiled":
        """The inverse of `to_dict`; other keys are ignored."""
        fields = _own(cls, values)
        if "memory" in fields:
            fields["memory"] = Memory(**_own(Memory, fields["memory"]))
        if "collectives" in fields:
            collectives = fields["collectives"].items()
            fields["collectives"] = {
                kind: Traffic(**traffic) for kind, traffic in collectives
            }
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Budget:
    """What follows from sizes alone, without a compiler.

    FLOPs are those of the model, as `flops_convention` counts them. Times assume that
    `assumed_mfu` of the peak of all chips is reached.
    """

    parameters: Counts
    tokens: int  # of the whole run
    flops_per_step: float
    flops_convention: str
    assumed_mfu: float
    step_seconds: float
    chip_hours: float  # of the whole run


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs on a topology.

    Attributes:
      topology: its name, such as v5p:4x4x4.
      devices: how many it has.
      slices: in how many groups they lie, TPU slices or GPU hosts.
      device_kind: as jax names it.
      placement: the layout in words.
      mesh: devices along each axis, as chosen.
      execution: that of the experiment, with what was chosen.
      change: the smallest one with which it fits, if it does not and one was sought.
      remat: by remat policy, where all of them were compiled.
    """

    topology: str
    devices: int
    slices: int
    device_kind: str
    placement: str
    mesh: config.Mesh
    execution: config.Execution
    budget: Budget
    compiled: Compiled
    change: str | None = None
    remat: dict[str, Compiled] | None = None

    def to_dict(self) -> Json:
        """Plain JSON values, those of budget and compilation beside the others."""
        values: Json = {
            "topology": self.topology,
            "devices": self.devices,
            "slices": self.slices,
            "device_kind": self.device_kind,
            "placement": self.placement,
            "mesh": dataclasses.asdict(self.mesh),
            "execution": dataclasses.asdict(self.execution),
            **dataclasses.asdict(self.budget),
            **self.compiled.to_dict(),
        }
        if self.change is not None:
            values["change"] = self.change
        if self.remat is not None:
            values["remat"] = {}
            for policy, compiled in self.remat.items():
                values["remat"][policy] = _verdict(compiled)
        return values

    @classmethod
    def from_dict(cls, values: Json) -> "Plan":
        """The inverse of `to_dict`, without `remat`; other keys are ignored."""
        fields = _own(cls, values)
        fields.pop("remat", None)
        budget = _own(Budget, values)
        budget["parameters"] = Counts(**budget["parameters"])
        fields["mesh"] = config.Mesh(**fields["mesh"])
        fields["execution"] = config.Execution(**fields["execution"])
        return cls(
            budget=Budget(**budget),
            compiled=Compiled.from_dict(values),
            **fields,
        )


def _verdict(compiled: Compiled) -> Json:
    """The part of a compilation that differs between remat policies."""
    values = compiled.to_dict()
    kept = ("fits", "memory", "reason")
    return {name: values[name] for name in kept if name in values}


def _own(cls: type, values: Json) -> Json:
    """The values that are fields of a dataclass."""
    names = [field.name for field in dataclasses.fields(cls)]
    return {name: values[name] for name in names if name in values}
