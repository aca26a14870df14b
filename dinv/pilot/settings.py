"""What competes: the same learners on both sides, with real images only and with generated ones besides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinv.classify.arms import Arm
from dinv.classify.base import LearnerParams
from dinv.classify.feature_params import UNetFeatures
from dinv.classify.finetune import FinetuneParams
from dinv.classify.probe import ProbeParams
from dinv.classify.training import TrainingParams
from dinv.errors import UserError
from dinv.features.network import load_network
from dinv.features.params import FeatureNetwork, is_watched
from dinv.params import GENERATED, Params

STRONG = {"mixup_alpha": 0.5, "cutmix_alpha": 1.0}
RANDOM = {"rand_augment_ops": 2}
ENCODER = "models/mini-sd/encoder"  # ships; has learned from photos, tiles and cells, and from no label
LARGEST = 64  # pixels of images that a network of 32 pixels can be asked about
# The rest is the user's own. Chosen on tiles and cells by what they give without generated images.
FINETUNED = {
    "learner": "finetune",
    "network": "convnet",
    "weights": ENCODER,
    "image_size": 32,
    "optimizer": "adamw",
    "momentum": 0.9,
    "body_lr_scale": 1.0,
    "lr": 0.001,
    "weight_decay": 0.01,
}
OF_UNKNOWN_SOURCE = ("import_folder",)  # may be made from images that a pilot scores


@dataclass(frozen=True)
class Competition:
    """Learners by name, each of which competes on both sides.

    Attributes:
        learners: in order of preference, the first of equals is chosen.
        generate: block of generate.
        left_out: name -> why it does not compete.
    """

    learners: dict[str, LearnerParams]
    generate: str
    left_out: dict[str, str] = field(default_factory=dict)

    def only(self, keep: Callable[[LearnerParams], bool], reason: str) -> "Competition":
        """Fewer learners; the others are named as left out."""
        kept = {name: params for name, params in self.learners.items() if keep(params)}
        gone = {name: reason for name in self.learners if name not in kept}
        return Competition(kept, self.generate, {**self.left_out, **gone})

    def named(self, names: Sequence[str]) -> "Competition":
        """Only these learners; all of them, if none is named. Raises UserError for a name that is none."""
        unknown = [name for name in names if name not in self.learners]
        if unknown:
            raise UserError(
                f"--learners {unknown[0]}: does not compete here; there are {', '.join(self.learners)}"
            )
        wanted = [self.learners[name] for name in names or self.learners]
        return self.only(lambda params: params in wanted, "not asked for")


def competition(params: Params) -> Competition:
    """The user's own learner with his and with stronger augmentation, probes on frozen features, and a
    shipped network that has learned from images without labels, trained further.

    The block of generate is that of the first arm that learns from real and from generated images.

    Raises:
        UserError: no arm learns from generated images.
    """
    mixed = [a for a in params.arms.values() if _strategy(params, a) not in (None, *OF_UNKNOWN_SOURCE)]
    arm = next((a for a in mixed if a.real), mixed[0] if mixed else None)
    if arm is None:
        raise UserError(f"arms: none learns from images that dinv generates; add an arm with {GENERATED}NAME")
    own, learners = params.train[arm.learner], dict[str, LearnerParams]()
    learners[arm.learner] = own
    if isinstance(own, TrainingParams):
        learners[f"{arm.learner}+mixup+cutmix"] = own.model_copy(update=STRONG)
        learners[f"{arm.learner}+randaugment"] = own.model_copy(update=RANDOM)
        if params.data.resolution <= LARGEST and Path(ENCODER).is_dir():
            learners["finetune-encoder"] = _finetuned(own)
    learners["probe-unet"] = _probe(_unet(params))
    left_out = {}
    for name, network in _feature_networks(params).items():
        if _knows_labels(network):
            left_out[f"probe-{name}"] = "its network learned from labels of this kind of image"
        elif not is_watched(network.path):
            left_out[f"probe-{name}"] = f"{network.path} lies where DVC does not see changes"
        else:
            learners[f"probe-{name}"] = _probe(network)
    return Competition(learners, arm.images.removeprefix(GENERATED), left_out)


def _finetuned(own: TrainingParams) -> FinetuneParams:
    """With the user's steps, batches and augmentation, MixUp and CutMix."""
    settings = {name: getattr(own, name) for name in TrainingParams.model_fields}
    head = {"head_steps": own.num_steps // 16}
    return FinetuneParams.model_validate({**settings, **STRONG, **FINETUNED, **head})


def _feature_networks(params: Params) -> dict[str, FeatureNetwork]:
    """Those that compare image sets, and the shipped one that knows no labels."""
    networks: dict[str, FeatureNetwork] = dict(params.measure.features)
    known = ENCODER in {network.path for network in networks.values()} or "encoder" in networks
    if params.data.resolution <= LARGEST and Path(ENCODER).is_dir() and not known:
        networks["encoder"] = FeatureNetwork(network="convnet", path=ENCODER)
    return networks


def _strategy(params: Params, arm: Arm) -> str | None:
    return None if arm.only_real else params.generate[arm.images.removeprefix(GENERATED)].strategy


def _knows_labels(network: FeatureNetwork) -> bool:
    """Whether it learned from thousands of labels of the same kind of image, as most that ship did."""
    return network.network == "convnet" and load_network(Path(network.path)).num_classes > 0


def _unet(params: Params) -> UNetFeatures:
    """The generator's own features, read in the middle of its UNet; large models' are averaged."""
    m = params.model
    return UNetFeatures(
        network="unet",
        path=m.path,
        dtype=m.dtype,
        resolution=m.resolution,
        block="mid",
        timestep=100,
        pooling="none" if m.resolution <= 64 else "mean",
    )


def _probe(features: FeatureNetwork | UNetFeatures) -> ProbeParams:
    settings = {
        "learner": "probe",
        "classifier": "svc",
        "kernel": "rbf",
        "C": 10.0,
        "features": features.model_dump(),
        "real_fraction": 0.5,
        "synthetic_loss_weight": 1.0,
        "min_confidence": 0.0,
        "seeds": [0],
    }
    return ProbeParams.model_validate(settings)
