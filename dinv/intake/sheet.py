"""A contact sheet of flagged pictures, for people."""

from collections.abc import Sequence
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dinv.errors import UserError
from dinv.intake.finding import REASONS, Finding
from dinv.intake.survey import Survey

TILE, GAP, COLUMNS, HEAD, LINE, LETTERS = 112, 10, 8, 30, 15, 18
PER_REASON = 24  # pictures of one reason; the list has all
FONT = 12


def contact_sheet(survey: Survey, findings: Sequence[Finding]) -> Image.Image | None:
    """Pictures by reason, at most 24 each, with their number in the list; None if no picture is flagged.

    A duplicate is shown beside the picture that it repeats. Numbers count all findings, from 1.
    """
    numbered = [(n, finding) for n, finding in enumerate(findings, 1) if finding.row is not None]
    if not numbered:
        return None
    blocks = [_block(survey, list(group)) for _, group in groupby(numbered, key=lambda pair: pair[1].reason)]
    canvas = Image.new("RGB", (blocks[0].width, sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        canvas.paste(block, (0, top))
        top += block.height
    return canvas


def _block(survey: Survey, group: list[tuple[int, Finding]]) -> Image.Image:
    reason = group[0][1].reason
    shown = group[:PER_REASON]
    tiles = [tile for number, finding in shown for tile in _tiles(survey, number, finding)]
    height = TILE + 3 * LINE + GAP
    rows = -(-len(tiles) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * (TILE + GAP) + GAP, HEAD + rows * height), "white")
    more = f"; {len(group) - len(shown)} more in the list" if len(group) > len(shown) else ""
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT + 2)
    pen.text((GAP, 8), f"{reason} ({len(group)}): {REASONS[reason]}{more}", fill="black", font=font)
    for i, tile in enumerate(tiles):
        canvas.paste(tile, (GAP + i % COLUMNS * (TILE + GAP), HEAD + i // COLUMNS * height))
    return canvas


def _tiles(survey: Survey, number: int, finding: Finding) -> list[Image.Image]:
    assert finding.row is not None
    words = [f"{number}: {finding.value}", f"{finding.split}, {finding.class_name}", _short(finding.file)]
    if finding.reason == "label":
        words[0] = f"{number}: {finding.other}?"
    tiles = [_tile(survey, finding.row, words)]
    if finding.other_row is not None:
        words = [f"= {number}", finding.note.removesuffix(": another class"), _short(finding.other)]
        tiles.append(_tile(survey, finding.other_row, words))
    return tiles


def _short(name: str) -> str:
    """The end of a long name."""
    return name if len(name) <= LETTERS else f"...{name[3 - LETTERS :]}"


def _tile(survey: Survey, row: int, words: Sequence[str]) -> Image.Image:
    """The original in a square, and three lines below."""
    canvas = Image.new("RGB", (TILE, TILE + 3 * LINE), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)
    try:
        picture = ImageOps.exif_transpose(survey.read(row)).convert("RGB")
        sharp = max(picture.size) < TILE  # small ones by whole pixels
        method = Image.Resampling.NEAREST if sharp else Image.Resampling.BICUBIC
        canvas.paste(ImageOps.pad(picture, (TILE, TILE), method, color="#ddd"), (0, 0))
    except UserError:
        pen.rectangle((0, 0, TILE - 1, TILE - 1), fill="#ddd")
        pen.text((TILE // 2, TILE // 2), "cannot be read", fill="#900", font=font, anchor="mm")
    for i, word in enumerate(words):
        pen.text((0, TILE + i * LINE), word[: LETTERS + 2], fill="black", font=font)
    return canvas
