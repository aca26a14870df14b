"""The experiments on images without labels and on what generated images lack: arms differ in what they say, and in nothing else."""

from pathlib import Path

import pytest
import tiny

from dinv.experiments.spec import changed, load_experiment
from dinv.params import parse_params, read_yaml

TASKS = {  # model: preset, images of each class in the sample's training part
    "models/satellite-ldm": ("satellite", 200),
    "models/cells-ldm": ("cells", 180),
    "models/fashion-ldm": ("fashion", 500),
}
OWN = {
    "fixmatch": {"real_fraction", "unlabelled_weight", "unlabelled_ratio"},
    "oracle": {"soft_labels", "teacher_weight", "teacher"},
}


@pytest.fixture(
    scope="module", params=["unlabelled", "decomposition", "decomposition_tasks", "decomposition_20"]
)
def runs(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny.ROOT)
        base = read_yaml(Path("params.yaml"))
        experiment = load_experiment(request.param, base)
        made = [parse_params(changed(base, run.settings, Path(request.param))) for run in experiment.runs()]
    return experiment, made


def test_nothing_is_chosen_on_test_images_and_labelled_images_vary(runs):
    experiment, made = runs
    assert experiment.split == "val" and experiment.pool == "data.seed"
    runs_of = {(params.model.path, params.data.num_per_class, params.data.seed) for params in made}
    assert len(made) == 3 * len({run[:2] for run in runs_of}) == len(runs_of)


def test_learners_differ_in_the_method_and_settings_are_those_of_the_preset(runs):
    for params in runs[1]:
        preset = read_yaml(tiny.ROOT / f"presets/{TASKS[params.model.path][0]}.yaml")
        plain = params.train["cnn"].model_dump()
        (own,) = set(params.train) - {"cnn"}
        other = params.train[own].model_dump()
        assert {name for name, value in other.items() if value != plain[name]} == OWN[own]
        found = params.model_dump()
        assert (
            found["data"] | preset["data"] == found["data"]
            and found["model"]["path"] == preset["model"]["path"]
        )
        assert params.invert["embeddings"].lr == preset["invert"]["embeddings"]["lr"]
        assert params.generate["inversion"].noise_std == preset["generate"]["inversion"]["noise_std"]


def test_every_arm_has_as_many_images_and_none_is_of_the_task(runs):
    experiment, made = runs
    for params in made:
        blocks = {params.arms[arm].images.rpartition("/")[2] for arm in experiment.arms} - {"train"}
        numbers = {
            getattr(params.generate[b], "num_images_per_source", None)
            or params.generate[b].num_images_per_embedding
            for b in blocks
        }
        assert len(blocks) == 3 and numbers == {10 if params.data.num_per_class == 5 else 3}
        left = TASKS[params.model.path][1] - params.data.num_val_per_class - params.data.num_per_class
        assert numbers.pop() * params.data.num_per_class <= left
        assert params.generate["pool"].max_duplicate_bits == 8


def test_gains_are_over_real_images_with_the_same_learner(runs):
    from dinv.classify.arms import baselines

    experiment, made = runs
    against = baselines(made[0].arms)
    mixing = [arm for arm in experiment.arms if not made[0].arms[arm].only_real]
    assert len(mixing) >= 4 and all(against[arm] in experiment.arms for arm in mixing)
