"""What params.yaml says of a network whose features are used, and where networks may lie."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from dinv.section import Section

# Dependencies of invert, generate and train, so that DVC sees changed files.
WATCHED = (
    "models/pretrained",
    "models/fashion-features",
    "models/satellite-features",
    "models/cells-features",
    "models/mini-sd/clip",
    "models/mini-sd/encoder",
)


def is_watched(path: str) -> bool:
    """Whether DVC sees when a file there changes."""
    return ".." not in Path(path).parts and any(Path(path).is_relative_to(folder) for folder in WATCHED)


def require_watched(path: str) -> str:
    """The path; raises ValueError if DVC would not see when a file there changes."""
    if not is_watched(path):
        raise ValueError(
            f"{path!r}: DVC would not see when it changes; put the network, or a YAML file that pins one on "
            "the hub, into models/pretrained"
        )
    return path


WatchedPath = Annotated[str, AfterValidator(require_watched)]


class FeatureNetwork(Section):
    """A network by its kind, and its file, its folder, or a small YAML file that pins a hub repository."""

    network: Literal["convnet", "inception", "dinov2", "clip"]
    path: str


class WatchedNetwork(FeatureNetwork):
    """A feature network whose files DVC watches."""

    path: WatchedPath
