"""Arms: which images train which learner. One line each in params.yaml; nothing else knows their names."""

from collections.abc import Mapping

from dinv.section import Section

REAL = "data/real/train"


class Arm(Section):
    """What one kind of classifier is trained on.

    Attributes:
        images: folder of an image set, data/real/train or data/generated/<block of generate>.
        real: whether the real training images are learned from besides.
        learner: block of `train`.
    """

    images: str
    real: bool
    learner: str

    @property
    def only_real(self) -> bool:
        """Whether no generated image is learned from."""
        return self.images == REAL


def baseline_of(name: str, arms: Mapping[str, Arm]) -> str | None:
    """The arm to measure a gain against, if there is one: the same learner on real images only."""
    learner = arms[name].learner
    baselines = (b for b, arm in arms.items() if arm.only_real and arm.learner == learner)
    return next((b for b in baselines if b != name), None)


def baselines(arms: Mapping[str, Arm]) -> dict[str, str]:
    """Arm -> the arm to measure its gain against; arms without one are left out."""
    found = {name: baseline_of(name, arms) for name in arms}
    return {name: baseline for name, baseline in found.items() if baseline is not None}


def image_sets(arms: Mapping[str, Arm]) -> dict[str, str]:
    """Name -> folder of the generated image sets that arms learn from, each once, in order of arms."""
    return {arm.images.rpartition("/")[2]: arm.images for arm in arms.values() if not arm.only_real}
