"""Where something comes from, and under which licence: read from model cards, READMEs and licence files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dinv.errors import UserError
from dinv.hub import read_pin, resolve

UNKNOWN = "unknown"  # the hub's identifier for a licence that is not known
README = "README.md"
NOTICES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
# Titles of licence texts -> identifiers of the hub.
_TITLES = {
    "MIT License": "mit",
    "Apache License": "apache-2.0",
    "CreativeML Open RAIL++-M": "openrail++",
    "CreativeML Open RAIL-M": "creativeml-openrail-m",
    "Attribution-NonCommercial 4.0": "cc-by-nc-4.0",
    "Attribution-ShareAlike 4.0": "cc-by-sa-4.0",
    "Creative Commons Attribution 4.0": "cc-by-4.0",
    "CC0 1.0": "cc0-1.0",
}


@dataclass(frozen=True)
class Origin:
    """A model or a set of images that a result was made with.

    Attributes:
        name: its folder, or the hub's repository with the commit.
        license: identifier as the hub has it, such as mit or cc-by-4.0; unknown: nothing says which.
        notices: its files with licence texts, which travel along.
        card: its README.md, if it has one.
        repo_id: owner/name on the hub, None for a folder.
    """

    name: str
    license: str
    notices: tuple[Path, ...] = ()
    repo_id: str | None = None
    card: Path | None = None

    @property
    def is_known(self) -> bool:
        """Whether a licence was found."""
        return self.license != UNKNOWN

    @property
    def restricts_use(self) -> bool:
        """Whether the licence is of the RAIL family, which forbids some uses."""
        return "rail" in self.license.lower()


def origin_of(path: Path) -> Origin:
    """The origin that a folder, or a file that pins a repository of the hub, names.

    The licence is `license` of the YAML at the top of README.md, else the title of a licence file. A folder
    that is not there, or a repository that cannot be reached, leaves it unknown.

    Raises:
        UserError: a pin or the YAML of a README is wrong.
    """
    if path.suffix in (".yaml", ".yml") and path.is_file():
        pin = read_pin(path)
        name, repo_id = f"{pin.repo_id} at {pin.revision}", pin.repo_id
        try:
            folder = resolve(path, [README, *NOTICES])
        except UserError:
            return Origin(name, UNKNOWN, (), repo_id)
    else:
        name, repo_id, folder = path.as_posix(), None, path
    notices = tuple(sorted(p for glob in NOTICES for p in folder.glob(glob) if p.is_file()))
    card = folder / README
    found = license_of_readme(card) or _license_of_texts(notices)
    return Origin(name, found or UNKNOWN, notices, repo_id, card if card.is_file() else None)


def license_of_readme(path: Path) -> str | None:
    """`license` of a model card or dataset card, None where there is no card or it does not say.

    Raises:
        UserError: the YAML at its top is broken.
    """
    from huggingface_hub.repocard import metadata_load  # noqa: PLC0415 - takes a second

    if not path.is_file():
        return None
    try:
        value = (metadata_load(path) or {}).get("license")
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: the YAML at its top is broken ({reason}); correct it") from error
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    return str(value) if value else None


def common_license(origins: Sequence[Origin]) -> str:
    """The licence of what was made from all of these: theirs if it is one, `other` if they differ, `unknown`
    if one of them is not known.
    """
    found = dict.fromkeys(origin.license for origin in origins)
    if not found or UNKNOWN in found:
        return UNKNOWN
    return next(iter(found)) if len(found) == 1 else "other"


def _license_of_texts(paths: Sequence[Path]) -> str | None:
    for path in paths:
        text = " ".join(path.read_text(errors="replace").split())
        for title, identifier in _TITLES.items():
            if title in text:
                return identifier
    return None
