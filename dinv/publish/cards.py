"""Parts that dataset cards and model cards share. A card is a README.md with YAML at its top."""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData

from dinv.publish.origin import README, Origin, common_license

GENERATOR = "generator"
PAPER = "[Diffusion Inversion](https://arxiv.org/abs/2305.15316)"
RESTRICTIONS = """\
The generator's licence is of the RAIL family. It allows use, also commercial, but its Attachment A forbids
some uses, and whoever passes on the model, or what derives from it, must pass these rules on. One of them:
not to be used to provide medical advice and medical results interpretation. Read it before you use this in a
medical product."""


def licence_fields(stated: str | None, origins: Sequence[Origin]) -> dict[str, Any]:
    """The fields of a card that state the licence: the stated one, else that of the origins."""
    found = stated or common_license(origins)
    fields: dict[str, Any] = {"license": found}
    if found == "other":
        # The hub wants a name, lower case with dashes, beside `other`.
        names = " and ".join(dict.fromkeys(o.license for o in origins if o.is_known)) or "other"
        fields["license_name"] = re.sub(r"[^a-z0-9.+]+", "-", names.lower())
        fields["license_link"] = "README.md"
    return fields


def licence_section(stated: str | None, origins: Mapping[str, Origin]) -> str:
    """What is known of licences, in words.

    Args:
        stated: by whoever exports, None: nothing.
        origins: what each is ("generator", "source images") -> where it comes from.
    """
    known = table(
        ("what", "from", "licence"), [(what, f"`{o.name}`", o.license) for what, o in origins.items()]
    )
    words = ["## Licence", known]
    if stated:
        words.append(f"Stated by whoever exported this: {stated}.")
    elif not all(o.is_known for o in origins.values()):
        words.append("Where the licence is unknown, ask before you use or share this.")
    if any(o.restricts_use for o in origins.values()):
        words.append(RESTRICTIONS)
    if any(o.notices or (o.card and what == GENERATOR) for what, o in origins.items()):
        words.append("Licence texts, and the generator's card, are in `licenses/` as far as there are any.")
    return "\n\n".join(words)


def copy_notices(origins: Mapping[str, Origin], folder: Path) -> None:
    """Licence texts of all origins, and the generator's card -> folder/licenses/<what>-<file>.

    The README.md of the source images is left out: it is the user's own, and not all of it may be for others.
    """
    for what, origin in origins.items():
        card = [origin.card] if what == GENERATOR and origin.card is not None else []
        for path in [*origin.notices, *card]:
            target = folder / "licenses" / f"{what.replace(' ', '-')}-{path.name}"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def yaml_block(values: Mapping[str, Any]) -> str:
    """Nested values as a fenced block of YAML."""
    return f"```yaml\n{yaml.safe_dump(dict(values), sort_keys=False).rstrip()}\n```"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def write_card(metadata: CardData, sections: Sequence[str], folder: Path) -> None:
    """Write README.md."""
    body = "\n\n".join(section.strip() for section in sections if section)
    (folder / README).write_text(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n")
