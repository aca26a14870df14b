"""What image sets without labels have in common: every class is equally probable."""

from dinv.strategies.base import Draw, Facts


def unlabelled(name: str, index: int, num_classes: int, facts: Facts) -> Draw:
    """The draw `name#index`. `label`, which every image has, goes round the classes and says nothing."""
    probabilities = (1 / num_classes,) * num_classes
    return Draw(f"{name}#{index}", index % num_classes, None, facts, probabilities)
