"""The learner `finetune`: a network that was trained on other images, its last layer new, trained further.

Unlike `cnn` with pretrained weights the network is left as it was: its own first layer, images scaled to
the side that it knows and normalised as its training images were.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn
from torchvision.models import resnet18, resnet50

from dinv.classify.architectures import Classifier, load_weights
from dinv.classify.base import Advance, Fitted, Predict, TrainingSet
from dinv.classify.cnn import pretrained_file
from dinv.classify.training import TrainingParams, train_network, training_settings
from dinv.errors import UserError
from dinv.features.location import location_digest
from dinv.features.network import NUM_FEATURES, FeatureNetwork, load_network
from dinv.features.params import require_watched
from dinv.files import file_digest
from dinv.rng import derive_seed, generator
from dinv.section import Beta, PositiveFloat

CONVNET = "convnet"  # as `network`: one of the small networks that ship, `weights` is its folder
TIMM = "timm"  # as `weights`: fetched by timm under the name of the network
NETWORKS: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "resnet50": resnet50}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std per channel, of pixels in [0, 1]


class FinetuneParams(TrainingParams):
    """The network, where its weights are, and how it is trained further."""

    network: Annotated[str, Field(pattern=r"^(resnet18|resnet50|convnet|timm/[\w.-]+)$")]
    weights: str
    image_size: Annotated[int, Field(ge=16)]
    optimizer: Literal["sgd", "adamw"]
    momentum: Beta
    head_steps: Annotated[int, Field(ge=0)]
    body_lr_scale: PositiveFloat

    @model_validator(mode="after")
    def _fit_each_other(self) -> "FinetuneParams":
        if self.weights == TIMM and not self.network.startswith("timm/"):
            raise ValueError(f"weights = 'timm' needs network: timm/NAME, not {self.network}")
        if self.network == CONVNET:
            require_watched(self.weights)
        if self.head_steps > self.num_steps:
            raise ValueError(f"head_steps must not be above num_steps ({self.num_steps})")
        return self


class Finetune:
    """The learner."""

    Params = FinetuneParams

    @staticmethod
    def settings(params: FinetuneParams, mixes: bool, device: torch.device) -> dict[str, Any]:
        """Those of the training; weights by the bytes of their file, or by their name."""
        if params.weights == TIMM:
            known = params.weights
        elif params.network == CONVNET:
            known = location_digest(Path(params.weights))
        else:
            known = file_digest(pretrained_file(params.weights, "weights"))
        return {**training_settings(params, mixes, device), "weights": known}

    @staticmethod
    def num_units(params: FinetuneParams) -> int:
        """Images in all steps together."""
        return params.num_steps * params.batch_size

    @staticmethod
    def fit(
        data: TrainingSet, params: FinetuneParams, seed: int, device: torch.device, advance: Advance
    ) -> Fitted:
        """The head alone for `head_steps`, then all, the body at `body_lr_scale` times the learning rate."""
        build: dict[str, Any] = {
            "network": params.network,
            "num_classes": data.num_classes,
            "image_size": params.image_size,
        }
        if params.network == CONVNET:
            build["layout"] = _layout(load_network(Path(params.weights)))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(seed, "init"))
            classifier = create(**build, fetch=params.weights == TIMM)
            _load(classifier, params)
            classifier.to(device)
            torch.manual_seed(derive_seed(seed, "training"))
            stages = _Stages(classifier, params)
            g = generator(seed, "train")
            curve = train_network(
                classifier, stages.optimizer(), data.sources, params, g, device, advance, stages.before_step
            )
        return Fitted(dict(classifier.state_dict()), build, curve)

    @staticmethod
    def load(tensors: dict[str, torch.Tensor], build: dict[str, Any], device: torch.device) -> Predict:
        """The network in eval mode."""
        classifier = create(**build, fetch=False)
        classifier.load_state_dict(tensors)
        classifier.to(device).eval()
        return lambda images: classifier(images).softmax(1)


class Resized(nn.Module):
    """A network behind a change of its images' side (bilinear, antialiased): float [B, 3, H, W] -> [B, M]."""

    def __init__(self, network: nn.Module, side: int):
        super().__init__()
        self.network, self.side = network, side

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the network says of the images at its side."""
        if pixels.shape[2:] != (self.side, self.side):
            pixels = F.interpolate(pixels, (self.side,) * 2, mode="bilinear", antialias=True)
        return self.network(pixels)


def create(
    network: str, num_classes: int, image_size: int, fetch: bool, layout: dict[str, Any] | None = None
) -> Classifier:
    """The network with a new last layer; grey images become as many equal channels as it knows.

    Args:
        network: as in the parameters.
        num_classes: outputs of the last layer.
        image_size: side that images are scaled to.
        fetch: whether timm fetches weights.
        layout: channels and strides of a `convnet`.

    Raises:
        UserError: timm is needed and not installed, or does not know or cannot fetch the network.
    """
    name = network.removeprefix("timm/")
    if layout is not None:
        body, mean, std = _convnet(num_classes, layout), *((0.5,) * layout["num_channels"],) * 2
    elif name == network:
        body, (mean, std) = NETWORKS[name](num_classes=num_classes), IMAGENET
    else:
        body, (mean, std) = _from_timm(name, num_classes, fetch)
    classifier = Classifier(Resized(body, image_size), torch.tensor(mean), torch.tensor(std))
    return classifier.to(memory_format=torch.channels_last)


def network_of(classifier: Classifier) -> nn.Module:
    """torchvision's or timm's network in a classifier."""
    assert isinstance(classifier.body, Resized)
    return classifier.body.network


def _layout(network: FeatureNetwork) -> dict[str, Any]:
    return {"num_channels": network.num_channels, "strides": list(network.strides)}


def _convnet(num_classes: int, layout: dict[str, Any]) -> nn.Module:
    """A network of dinv.features.network with a head, for images in [-1, 1]."""
    body = FeatureNetwork(0, **layout).body
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(NUM_FEATURES, num_classes)))


def _load(classifier: Classifier, params: FinetuneParams) -> None:
    """What the network has learned before; timm has loaded its own."""
    if params.network == CONVNET:
        known = load_network(Path(params.weights)).body.state_dict()
        network_of(classifier).get_submodule("body").load_state_dict(known)
    elif params.weights != TIMM:
        path = pretrained_file(params.weights, "weights")
        load_weights(network_of(classifier), path, "weights", (_head_name(classifier),))


def _from_timm(name: str, num_classes: int, fetch: bool) -> tuple[nn.Module, Any]:
    try:
        import timm  # noqa: PLC0415 - optional
    except ImportError as error:
        raise UserError(
            f"network = 'timm/{name}': timm is not installed; pip install -e '.[timm]', or take resnet18"
        ) from error
    try:
        body = timm.create_model(name, pretrained=fetch, num_classes=num_classes)
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"network = 'timm/{name}': timm cannot make it ({reason})") from error
    config = timm.data.resolve_model_data_config(body)
    return body, (config["mean"], config["std"])


def _head_name(classifier: Classifier) -> str:
    """The last layer's name in the network: the last linear layer."""
    names = [name for name, m in network_of(classifier).named_modules() if isinstance(m, nn.Linear)]
    return names[-1]


class _Stages:
    """The two stages of training: the head alone, with the body as in use, then both."""

    def __init__(self, classifier: Classifier, params: FinetuneParams):
        self.params, self.network = params, network_of(classifier)
        self.head = self.network.get_submodule(_head_name(classifier))
        own = {id(p) for p in self.head.parameters()}
        self.body = [p for p in self.network.parameters() if id(p) not in own]

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD or AdamW, the body's learning rate scaled."""
        p = self.params
        groups: list[dict[str, Any]] = [
            {"params": list(self.head.parameters())},
            {"params": self.body, "lr_scale": p.body_lr_scale},
        ]
        if p.optimizer == "adamw":
            return torch.optim.AdamW(groups, p.lr, weight_decay=p.weight_decay)
        return torch.optim.SGD(groups, p.lr, p.momentum, weight_decay=p.weight_decay)

    def before_step(self, step: int) -> None:
        """At its beginning and its end: a body that does not learn keeps its normalisation, too."""
        if step in (0, self.params.head_steps):
            learns = step >= self.params.head_steps
            self.network.train(learns)
            self.head.train()
            for parameter in self.body:
                parameter.requires_grad_(learns)
