"""The subcommands init and check. Each imports what it needs when it runs, so that help is instant."""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

from dinv.intake.thresholds import Thresholds

INIT = """\
Look at labelled images of your own, say what is there and what is wrong with it, and set params.yaml for
them, with the model of models/ that fits. FOLDER has a subfolder per class, or train/ and test/ with these,
or labels.csv with columns path and label, or train.parquet and test.parquet.

It prints every parameter that it changes; comments stay, and git checkout params.yaml undoes it. Called again
for the same folder it keeps what you have changed since, and says so.

  dinv init my_images
  dinv init my_images --model models/stable-diffusion-v1-4.yaml
"""
CHECK = """\
Look for what spoils results, on the task of params.yaml: broken, blurred, single-coloured, small and grey
pictures, duplicates within and across splits, labels that are likely to be wrong, classes with few images,
and an autoencoder that loses what tells classes apart. It writes findings.csv, contact_sheet.png and
summary.json, and changes nothing else.

  dinv check
  dinv check --quick --output look_at_these
"""


def add_init(init: argparse.ArgumentParser) -> None:
    """Options of `dinv init`."""
    init.add_argument("folder", type=Path, metavar="FOLDER", help="where your images are")
    init.add_argument(
        "--model",
        metavar="PATH",
        help="folder in diffusers layout, or a file that pins one on the hub;\n"
        "default: the shipped model that loses least of your images",
    )
    init.add_argument(
        "--source", metavar="NAME", help="image_folder, image_csv or parquet; default: by what is there"
    )
    init.add_argument("--resolution", type=int, metavar="N", help="side in pixels of classifiers' images")
    init.add_argument(
        "--resize",
        choices=["center_crop", "squash", "pad"],
        help="default: center_crop, or squash for long pictures",
    )
    init.add_argument("--dry-run", action="store_true", help="change nothing")
    init.add_argument("--reset", action="store_true", help="also what you changed since the last dinv init")
    init.set_defaults(run=_init)


def _init(args: argparse.Namespace) -> None:
    from dinv.intake.initialise import initialise  # noqa: PLC0415
    from dinv.intake.propose import Options  # noqa: PLC0415

    options = Options(args.model, args.source, args.resolution, args.resize, args.dry_run, args.reset)
    initialise(args.folder, options)


def add_check(check: argparse.ArgumentParser) -> None:
    """Options of `dinv check`."""
    check.add_argument("--output", type=Path, default=Path("data/check"), metavar="FOLDER")
    check.add_argument("--json", action="store_true", help="print the summary as JSON")
    check.add_argument("--strict", action="store_true", help="exit status 1 if anything is found")
    check.add_argument("--quick", action="store_true", help="without labels and autoencoder: no network")
    check.add_argument(
        "--features",
        default="unet",
        metavar="NAME",
        help="doubt labels by features of this block of measure.features;\n"
        "default: those of the model's own UNet",
    )
    check.add_argument(
        "--num-images", type=int, default=1000, metavar="N", help="try the autoencoder on at most N (1000)"
    )
    for limit in fields(Thresholds):
        name, default = limit.name.replace("_", "-"), limit.default
        help_ = f"{limit.metadata['help']} ({default})"
        check.add_argument(f"--{name}", type=type(default), default=default, metavar="X", help=help_)
    check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> None:
    from dinv.intake.check import CheckOptions  # noqa: PLC0415
    from dinv.intake.report import check, summary, words  # noqa: PLC0415

    limits = Thresholds(**{limit.name: getattr(args, limit.name) for limit in fields(Thresholds)})
    options = CheckOptions(args.output, args.features, args.quick, args.num_images, limits)
    found = check(options)
    print(json.dumps(summary(found), indent=2) if args.json else words(found, options))
    if args.strict and found.findings:
        sys.exit(1)
