"""The section `data` of params.yaml."""

import difflib
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dinv.section import PositiveInt, Section, Seed
from dinv.sources.registry import SOURCES


def _registered(name: str) -> str:
    if name in SOURCES:
        return name
    close = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ValueError(f"no source is called {name!r}{hint}; there are {', '.join(SOURCES)}")


class DataParams(Section):
    """Which labelled images form the task."""

    source: Annotated[str, AfterValidator(_registered)]
    root: str
    resolution: Annotated[int, Field(ge=8)]
    resize: Literal["pad", "center_crop", "squash"]
    mode: Literal["L", "RGB"]
    num_per_class: PositiveInt | None
    num_val_per_class: Annotated[int, Field(ge=0)]
    num_test: PositiveInt | None
    seed: Seed
