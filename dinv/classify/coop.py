"""The learner `coop`: words of the prompt are learned (Zhou et al. 2022, "Learning to Prompt for
Vision-Language Models", IJCV, arXiv 2109.01134). CLIP's own weights stay as they are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from dinv.classify.base import Advance, Fitted, LabelledImages, Predict, TrainingSet
from dinv.classify.clip_based import (
    ClipNetwork,
    ClipParams,
    build_of,
    names_for,
    settings_of,
    text_predictor,
)
from dinv.classify.feature_training import FeatureTrainingParams, only_mixed, train_on_features
from dinv.classify.views import ViewParams, viewed
from dinv.errors import UserError
from dinv.features.clip_text import ClipText
from dinv.rng import generator
from dinv.section import Beta, NonNegativeFloat, PositiveFloat, PositiveInt

INIT_STD = 0.02


class CoopParams(ClipParams, ViewParams, FeatureTrainingParams):
    """The context and how it is learned."""

    num_context_tokens: PositiveInt
    context_init: str | None
    class_position: Literal["end", "middle", "front"]
    class_specific: bool
    lr: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)]
    warmup_lr: PositiveFloat
    momentum: Beta
    weight_decay: NonNegativeFloat

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "CoopParams":
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps must be below num_steps ({self.num_steps})")
        return self


@dataclass(frozen=True)
class ContextPrompts:
    """A prompt per class, with places for learned vectors.

    Attributes:
        text: the encoder.
        ids: int64 [M, L], anything at these places.
        places: int64 [M, n], where the n vectors stand.
    """

    text: ClipText
    ids: torch.Tensor
    places: torch.Tensor

    def features(self, context: torch.Tensor) -> torch.Tensor:
        """Weights float32 [M, D] for a context [n, width], or [M, n, width] of each class."""
        rows = torch.arange(len(self.ids), device=self.ids.device)[:, None]
        vectors = torch.full((*self.ids.shape, self.text.width), torch.nan, device=self.ids.device)
        vectors[rows, self.places] = context.expand(*self.places.shape, -1)
        return self.text.encode(self.ids, vectors)


def context_prompts(
    text: ClipText, names: Sequence[str], num_tokens: int, position: Literal["end", "middle", "front"]
) -> ContextPrompts:
    """v_1 ... v_n, the class's name at the position, and a full stop.

    Raises:
        UserError: this CLIP does not read so many tokens; says how many it does.
    """
    before = {"end": num_tokens, "middle": num_tokens // 2, "front": 0}[position]
    stop = text.tokens(".")
    blank = stop[:1]
    named = {name: text.tokens(name.replace("_", " ")) for name in names}
    require_room(text.max_length, num_tokens, {name: len(found) + len(stop) for name, found in named.items()})
    ids, places = [], []
    for name in names:
        name_ids = named[name]
        tokens = [*blank * before, *name_ids, *blank * (num_tokens - before), *stop]
        ids.append(text.framed(tokens, name))
        after = range(1 + before + len(name_ids), 1 + num_tokens + len(name_ids))
        places.append([*range(1, 1 + before), *after])
    return ContextPrompts(text, text.padded(ids), torch.tensor(places, device=text.device))


def require_room(max_length: int, num_tokens: int, lengths: Mapping[str, int]) -> None:
    """Raise UserError where the context, start and end leave no room for a class.

    Args:
        max_length: how many tokens the CLIP reads.
        num_tokens: of the context.
        lengths: tokens of each class's name and full stop.
    """
    longest = max(lengths, key=lengths.__getitem__)
    room = max_length - 2 - lengths[longest]
    if room < 1:
        raise UserError(
            f"class {longest!r}: {lengths[longest]} tokens leave no room for a context: this CLIP reads "
            f"{max_length} with start and end; give it a shorter name in class_names"
        )
    if num_tokens > room:
        raise UserError(
            f"num_context_tokens = {num_tokens}: this CLIP reads {max_length} tokens, and class {longest!r}, "
            f"start and end leave room for {room}; set it to {room} or less, or shorten names in class_names"
        )


def first_context(text: ClipText, params: CoopParams, num_classes: int, seed: int) -> torch.Tensor:
    """N(0, 0.02^2), or the vectors of the words in `context_init`; float32 [n, width] or [M, n, width].

    Raises:
        UserError: these words are not `num_context_tokens` tokens.
    """
    n = params.num_context_tokens
    shape = (num_classes, n, text.width) if params.class_specific else (n, text.width)
    if params.context_init is None:
        return INIT_STD * torch.randn(shape, generator=generator(seed, "context"))
    tokens = text.tokens(params.context_init)
    if len(tokens) != n:
        raise UserError(
            f"context_init = {params.context_init!r}: {len(tokens)} tokens; set num_context_tokens to that"
        )
    return text.vectors_of(torch.tensor(tokens)).cpu().expand(shape).clone()


def learning_rate(params: CoopParams, step: int) -> float:
    """A small constant while it warms up, then half a cosine from lr to 0 (Dassl's schedule, per step)."""
    if step < params.warmup_steps:
        return params.warmup_lr
    return params.lr * 0.5 * (1 + math.cos(math.pi * step / params.num_steps))


class Coop:
    """The learner."""

    Params = CoopParams

    @staticmethod
    def settings(params: CoopParams, mixes: bool, device: torch.device) -> dict[str, Any]:
        """CLIP, context, views and training; of mixing only where there is something to mix."""
        return settings_of(params, only_mixed(mixes))

    @staticmethod
    def num_units(params: CoopParams) -> int:
        """Images in all steps together."""
        return params.num_steps * params.batch_size

    @staticmethod
    def fit(
        data: TrainingSet, params: CoopParams, seed: int, device: torch.device, advance: Advance
    ) -> Fitted:
        """SGD on the context; the last step's is the result. Batches, views, context follow from `seed`."""
        network = ClipNetwork.of(params.path)
        text = ClipText(network.location, device)
        names = names_for(data, params)
        prompts = context_prompts(text, names, params.num_context_tokens, params.class_position)
        context = first_context(text, params, len(names), seed).to(device).requires_grad_()
        views = viewed(data.sources, network, params, seed, device)
        curve = train_context(prompts, context, views, params, seed, advance)
        with torch.no_grad():
            weights = prompts.features(context)
        tensors = {"weights": weights, "scale": torch.tensor(text.scale), "context": context.detach()}
        return Fitted({k: t.cpu() for k, t in tensors.items()}, build_of(params, network), curve)

    @staticmethod
    def load(tensors: dict[str, torch.Tensor], build: dict[str, Any], device: torch.device) -> Predict:
        """softmax of exp(scale) cos(image, class)."""
        return text_predictor(tensors, build, device)


def train_context(
    prompts: ContextPrompts,
    context: torch.Tensor,
    views: Sequence[LabelledImages],
    params: CoopParams,
    seed: int,
    advance: Advance,
) -> list[tuple[int, float]]:
    """Change `context` in place; `views` have features [N, V, D] for images. Returns the curve of losses."""
    g = generator(seed, "train")
    optimizer = torch.optim.SGD(
        [context], params.lr, momentum=params.momentum, weight_decay=params.weight_decay
    )

    def logits(features: torch.Tensor) -> torch.Tensor:
        return prompts.text.scale * features @ prompts.features(context).T

    rate = partial(learning_rate, params)
    return train_on_features(logits, optimizer, rate, views, params, g, context.device, advance)
