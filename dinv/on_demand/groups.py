"""Images that are made together: those that stage generate computes together, so that bytes are equal."""

from dinv.strategies.worker import PART_SIZE


def group_of(index: int, size: int, total: int) -> range:
    """The images that are made together with one of them.

    Groups of `size` start anew at every part of stage generate, whose micro-batches do so too.

    Args:
        index: the image, 0 to total - 1.
        size: images per group, >= 1; the last group of a part may be smaller.
        total: how many images there are.
    """
    part = index // PART_SIZE * PART_SIZE
    start = part + (index - part) // size * size
    return range(start, min(start + size, part + PART_SIZE, total))
