"""What params.yaml says of a network whose features are used."""

from typing import Literal

from dinv.section import Section


class FeatureNetwork(Section):
    """A network by its kind, and its file, its folder, or a small YAML file that pins a hub repository."""

    network: Literal["convnet", "inception", "dinov2", "clip"]
    path: str
