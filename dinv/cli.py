"""The command `dinv`. Each subcommand imports what it needs when it runs, so that help is instant."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dinv.errors import UserError
from dinv.intake.arguments import CHECK, INIT, add_check, add_init

HELP = """\
Grow a small labelled image set with a frozen generative model.

The pipeline itself is run by DVC: dvc repro, dvc exp run. This command is for what lies around it; run it
in the folder that holds params.yaml.

  dinv init my_images                                look at your images, set params.yaml for them
  dinv check                                         duplicates, doubtful labels, blur and more, before a run
  dinv export data/generated/inversion my_images     image set -> a folder of PNG files per class
  dinv export data/classifiers/mixed my_classifier   classifiers -> files with a model card
  dinv archive-model                                 the generator -> DVC, before it vanishes from the hub
  dinv preset stl10 sd14 resnet18                    the paper's settings -> params.yaml
  dinv experiment learning_curve                     many settings -> one table and one figure
  dinv tune default                                  the best settings of each arm, found with equal effort
  dinv report                                        the run in this folder -> one page, report.html
  dinv pilot --minutes 15                            will generated images help on this task?
  dinv calibrate --pilots 20 --runs 10               how often pilots are right where the answer is known
  dinv estimate --price-per-hour 2.5                 what the run will cost in time, disk, memory and money
"""
EXPORT = """\
Write an output of the pipeline for programs and people that have no dinv, into a new folder:

  an image set             a folder of PNG files per class; with --format huggingface Parquet files and a
                           dataset card, as datasets.load_dataset reads them
  classifiers, embeddings  safetensors files and a model card

--push uploads the folder to the Hugging Face hub, to a private repository. Cards state the licences of the
generator and of the source images; --license states the one of what you share. In names of PNG files and
folders characters of ids and classes that suit none become "_".

  dinv export data/real/train look_at_these
  dinv export data/generated/inversion my_images
  dinv export data/generated/inversion my_dataset --format huggingface
  dinv export data/generated/inversion my_dataset --push my-team/cells --license cc-by-4.0
  dinv export data/classifiers/mixed my_classifier
  dinv export data/learned/embeddings my_embeddings
"""
ARCHIVE = """\
Put the generator of params.yaml under DVC, so that dvc push keeps it where the results are: models vanish
from the hub, as Stable Diffusion 1.5 did in 2024 and 2.x in 2025. One that is pinned on the hub is copied to
models/NAME, and model.path then names that folder; dvc repro computes nothing again. Models that came with
the project are in git, and need none of this.

  dinv archive-model
  dinv archive-model --push
"""
PRESET = """\
Write presets into params.yaml, in order; what they do not name stays, and so do comments. The files of
presets/ hold data sets, models and classifiers with the paper's settings. `git diff params.yaml` shows what
changed, `git checkout params.yaml` undoes it.

  dinv preset stl10 sd14 resnet18
"""
EXPERIMENT = """\
Run the pipeline once for every setting of experiments/NAME.yaml, each in a copy of the project, and write all
numbers, a table and a figure into metrics/experiments/. What is finished is reused: after an interruption the
same command goes on where it was.

  dinv experiment learning_curve
  dinv experiment learning_curve --preset satellite    -> metrics/experiments/satellite-learning_curve.csv
"""
TUNE = """\
Search for the best settings of each arm that tune/NAME.yaml names, with as many trials for each, by accuracy
on labelled images that were left out. Then run the pipeline with the best of each, and write all trials and a
table into metrics/tuning/. After an interruption the same command goes on where it was. Run dvc repro first.

  dinv tune default
"""
REPORT = """\
Write one page about the run in this folder: what generated images gain or harm, pictures, cost, licences. It
is one file that needs no server and no network. With --against also about another run, side by side.

  dinv report                                          -> report.html
  dinv report --against lambda-0.8                     an experiment, a git revision or another folder
  dinv report --markdown --output comment.md           for a pull request
"""
ESTIMATE = """\
Time a little of every stage of the run that params.yaml describes, on this machine, and count up: time, disk,
memory and, with a price, costs, each as a range. Only .scratch/estimate.json is written: stages that start
with these settings on this machine say the same numbers.

  dinv estimate
  dinv estimate --price-per-hour 2.5 --json
"""
PILOT = """\
Find out on a share of the labelled images whether generated images help more than what can be done without
them: stronger augmentation, classifiers of frozen features. Both sides have the same learners and choose
among them by images that are not scored. Test images are not looked at. Writes NAME.json, .md and .png into
metrics/pilot/. After an interruption the same command goes on where it was.

  dinv pilot
  dinv pilot --name satellite --minutes 15
"""
CALIBRATE = """\
Run pilots on other choices of labelled images of the same task, data.seed counting up, and count how often
the interval covers the answer: points that generated images add to the best alternative, as full runs say
with as many labelled images of each class. These runs have the settings of params.yaml, other labelled images
again, and are scored on the test split; or --truth says what they found. Writes NAME-calibration.csv and
NAME-runs.csv into metrics/pilot/. After an interruption the same command goes on where it was.

  dinv calibrate --pilots 20 --runs 10 --minutes 15
  dinv calibrate --pilots 20 --truth 2.8
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as a command; a UserError becomes one line and exit status 1."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except UserError as error:
        sys.exit(f"dinv {args.command}: {error}")


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawTextHelpFormatter(prog, max_help_position=30)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("dinv", description=HELP, formatter_class=_formatter)
    commands = parser.add_subparsers(dest="command", metavar="SUBCOMMAND", required=True)

    def add(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=description, formatter_class=_formatter)

    add_init(add("init", "set params.yaml for images of your own", INIT))
    add_check(add("check", "look for what spoils results", CHECK))
    _add_export(add("export", "write images, classifiers or embeddings for others", EXPORT))
    archive = add("archive-model", "keep the generator with the results", ARCHIVE)
    archive.add_argument("--push", action="store_true", help="upload it to the DVC remote too")
    archive.set_defaults(run=_archive)
    preset = add("preset", "write presets into params.yaml", PRESET)
    preset.add_argument("name", nargs="+", help="file of presets/ without .yaml")
    preset.set_defaults(run=_preset)
    experiment = add("experiment", "answer one question with many runs", EXPERIMENT)
    experiment.add_argument("name", help="file of experiments/ without .yaml")
    experiment.add_argument(
        "--preset", nargs="+", default=[], help="files of presets/ that hold for all runs"
    )
    experiment.set_defaults(run=_experiment)
    tune = add("tune", "find each arm's best settings with equal effort", TUNE)
    tune.add_argument("name", help="file of tune/ without .yaml")
    tune.set_defaults(run=_tune)
    report = add("report", "write a page about a run, or two side by side", REPORT)
    report.add_argument("--output", type=Path, help="file to write (default: report.html or report.md)")
    report.add_argument("--against", metavar="RUN", help="git revision, experiment of DVC, or folder")
    report.add_argument("--markdown", action="store_true", help="Markdown instead of HTML")
    report.set_defaults(run=_report)
    pilot = add("pilot", "will generated images help on this task?", PILOT)
    pilot.add_argument("--name", default="pilot", help="of the files that are written")
    pilot.add_argument("--minutes", type=float, default=15, help="to be kept to, as far as possible")
    pilot.add_argument("--price-per-hour", type=float, help="of this machine, in any currency")
    pilot.add_argument("--learners", nargs="+", default=[], metavar="NAME", help="only these compete")
    pilot.add_argument("--json", action="store_true", help="print all numbers, for programs")
    pilot.set_defaults(run=_pilot)
    calibrate = add("calibrate", "how often pilots are right where the answer is known", CALIBRATE)
    calibrate.add_argument("--truth", type=float, help="points, as full runs said; without: they are run")
    calibrate.add_argument("--runs", type=int, default=10, help="how many full runs")
    calibrate.add_argument("--pilots", type=int, default=20, help="how many")
    calibrate.add_argument("--learners", nargs="+", default=[], metavar="NAME", help="only these compete")
    calibrate.add_argument("--minutes", type=float, default=15, help="of each pilot")
    calibrate.add_argument("--name", default="pilot", help="of the file that is written")
    calibrate.set_defaults(run=_calibrate)
    estimate = add("estimate", "time, disk, memory and costs of a run", ESTIMATE)
    estimate.add_argument("--price-per-hour", type=float, help="of this machine, in any currency")
    estimate.add_argument("--json", action="store_true", help="all numbers, for programs")
    estimate.set_defaults(run=_estimate)
    return parser


def _add_export(export: argparse.ArgumentParser) -> None:
    add = export.add_argument
    add("source", type=Path, help="data/real/train, data/generated/NAME, data/classifiers/ARM, ...")
    add("target", type=Path, help="new folder")
    add("--format", choices=("folder", "huggingface"), help="of an image set; without: folder")
    add("--license", metavar="ID", help="licence of what you share, as the hub names it: mit, cc-by-4.0, ...")
    add("--push", metavar="OWNER/NAME", help="upload to this repository of the Hugging Face hub")
    add("--public", action="store_true", help="for everybody to see; without: private")
    export.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    from dinv.publish.export import Options, export  # noqa: PLC0415

    print(export(args.source, args.target, Options(args.format, args.license, args.push, args.public)))


def _archive(args: argparse.Namespace) -> None:
    from dinv.archive import archive_model  # noqa: PLC0415

    print(archive_model(args.push))


def _preset(args: argparse.Namespace) -> None:
    from dinv.preset import apply_presets  # noqa: PLC0415

    apply_presets(args.name)


def _experiment(args: argparse.Namespace) -> None:
    from dinv.experiments.run import run_experiment  # noqa: PLC0415

    run_experiment(args.name, args.preset)


def _tune(args: argparse.Namespace) -> None:
    from dinv.tuning.run import run_tuning  # noqa: PLC0415

    run_tuning(args.name)


def _report(args: argparse.Namespace) -> None:
    from dinv.report.run import write_report  # noqa: PLC0415

    print(f"report in {write_report(args.output, args.against, args.markdown)}")


def _estimate(args: argparse.Namespace) -> None:
    from dinv.estimate.run import run_estimate  # noqa: PLC0415

    run_estimate(args.price_per_hour, not args.json)


def _pilot(args: argparse.Namespace) -> None:
    from dinv.pilot.run import run_pilot  # noqa: PLC0415

    run_pilot(args.name, args.minutes, args.price_per_hour, not args.json, args.learners)


def _calibrate(args: argparse.Namespace) -> None:
    from dinv.pilot.calibrate import run_calibration  # noqa: PLC0415

    run_calibration(args.name, args.pilots, args.truth, args.runs, args.minutes, args.learners)


if __name__ == "__main__":
    main()
