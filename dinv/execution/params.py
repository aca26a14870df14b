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

    @classmethod
    def here(cls, device: str = "auto") -> "ExecutionParams":
        """In this process: for results that no section of params.yaml has a say in."""
        return cls(
            device=device,
            micro_batch=100,
            backend="local",
            num_workers=1,
            cpus_per_worker=1,
            gpus_per_worker=0.0,
            address=None,
        )

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> "ExecutionParams":
        if self.backend == "local" and self.num_workers > 1:
            raise ValueError(f"num_workers = {self.num_workers} needs backend: ray; local has one worker")
        if self.backend == "local" and self.address is not None:
            raise ValueError(f"address = {self.address!r} needs backend: ray")
        return self
