"""Base of every section of params.yaml, the types of its values, and registries of what they name.

Each section stands beside the code that reads it; dinv/params.py puts them together.
"""

import difflib
from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dinv.errors import UserError

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _names_the_class(template: str) -> str:
    if "{class}" not in template:
        raise ValueError(f"{template!r} has no {{class}}, where the class's name goes")
    return template


Template = Annotated[str, AfterValidator(_names_the_class)]


class Section(BaseModel):
    """Base of every section: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Registry(Mapping[str, Any]):
    """Implementations by name, imported when they are asked for.

    Args:
        kind: what they are, for messages.
        places: name -> "module:attribute".
    """

    def __init__(self, kind: str, places: dict[str, str]):
        self.kind, self.places = kind, places

    def __getitem__(self, name: str) -> Any:
        """The implementation; raises UserError for a name that is not there."""
        if name not in self.places:
            raise UserError(f"no such {self.kind}{did_you_mean(name, self.places)}; known: {', '.join(self)}")
        return resolve_name(self.places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def module(self, name: str) -> str:
        """Name of the module that holds an implementation."""
        return self.places[name].partition(":")[0]


def did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    """The known name that is most like a misspelt one, as words; nothing if none is."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
