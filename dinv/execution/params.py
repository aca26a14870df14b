"""The section `execution` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dinv.section import NonNegativeFloat, PositiveInt, Section


class ExecutionParams(Section):
    """Where and how fast: never changes a result, so no stage depends on it."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    micro_batch: PositiveInt
    backend: Literal["local", "ray"]
    num_workers: PositiveInt
    cpus_per_worker: PositiveInt
    gpus_per_worker: NonNegativeFloat
    address: str | None

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> "ExecutionParams":
        if self.backend == "local" and self.num_workers > 1:
            raise ValueError(f"num_workers = {self.num_workers} needs backend: ray; local has one worker")
        if self.backend == "local" and self.address is not None:
            raise ValueError(f"address = {self.address!r} needs backend: ray")
        return self
