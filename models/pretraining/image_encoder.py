r"""Step for captioned images: train an image encoder for the finished UNet, as for image variations.

Pinkney (2022) fine-tunes Stable Diffusion's UNet on the embeddings of a frozen CLIP. Here the UNet, which
text and tokens share, stays as it is and CLIP's vision side learns: what single token makes the UNet denoise
this image best? Writes image_encoder/ and feature_extractor/, a moving average of the weights, and denoising
losses on unseen images.

    python -m models.pretraining.image_encoder --domain models/domains/photos.yaml --images data \
        --output models/mini-sd
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPVisionModelWithProjection

from dinv.errors import UserError
from dinv.files import write_json
from models.pretraining.clip import image_processor, load_clip, load_photos
from models.pretraining.data import load_captioned
from models.pretraining.domain import load_domain, random_symmetries
from models.pretraining.loop import EMA_DECAY, argument_parser, mixed_precision, settings, train
from models.pretraining.measure import denoising_loss, some
from models.pretraining.text import TextEncoder
from models.pretraining.unet import latent_means, noise_schedule


class ImageEmbedding(nn.Module):
    """Image [B, 3, 32, 32] in [-1, 1] -> condition [B, 1, D]; starts as CLIP's vision side."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        config = clip.config.vision_config
        config._attn_implementation = "eager"  # as clip.py has it
        self.vision: Any = CLIPVisionModelWithProjection(config)
        self.vision.vision_model.load_state_dict(clip.vision_model.state_dict())
        self.vision.visual_projection.load_state_dict(clip.visual_projection.state_dict())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.vision(pixel_values=images).image_embeds.float()[:, None]


class Frozen:
    """The finished autoencoder and UNet; no weight of them learns."""

    def __init__(self, output: Path) -> None:
        for part in ("vae", "unet", "clip"):
            if not (output / part).is_dir():
                step = f"python -m models.pretraining.{part}"
                raise UserError(f"{output / part}: no such folder; run {step} first")
        self.vae: Any = AutoencoderKL.from_pretrained(output / "vae", torch_dtype=torch.float32)
        self.unet: Any = UNet2DConditionModel.from_pretrained(output / "unet", torch_dtype=torch.float32)
        self.vae.eval().requires_grad_(False)
        self.unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@torch.no_grad()
def losses(
    encoder: ImageEmbedding, frozen: Frozen, images: torch.Tensor, empty: torch.Tensor
) -> dict[str, float]:
    """Denoising loss with an image's own embedding, other conditions, the empty prompt [L, D]."""
    own = torch.cat([encoder(batch) for batch in images.split(250)])
    conditions = {
        "loss_own_embedding": own,
        "loss_embedding_of_another": own.roll(1, 0),
        "loss_zeros": torch.zeros_like(own),
        "loss_empty_prompt": empty.expand(len(own), -1, -1),
    }
    latents = torch.cat([latent_means(frozen.vae, batch) for batch in images.split(250)])
    return {name: round(denoising_loss(frozen.unet, latents, c), 5) for name, c in conditions.items()}


def save(encoder: ImageEmbedding, output: Path) -> None:
    """Write the two folders that an image-variation model has beside its UNet; float16."""
    encoder.vision.half().save_pretrained(output / "image_encoder")
    image_processor().save_pretrained(output / "feature_extractor")


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    domain = load_domain(args.domain)
    torch.manual_seed(0)
    frozen, empty = Frozen(args.output), TextEncoder(args.output)([""])[0]
    data, unseen = load_photos(args, domain), load_captioned(args.images, domain, unseen=True)
    model, scheduler = ImageEmbedding(load_clip(args.output)[0]), noise_schedule()

    def loss_of(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = random_symmetries(data.images[ids], domain.symmetries)
        with mixed_precision():
            clean = latent_means(frozen.vae, images)
            noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(ids),))
            predicted = frozen.unet(scheduler.add_noise(clean, noise, t), t, model(images)).sample
        loss = (predicted.float() - noise).square().mean()
        return loss, loss.detach()

    assert domain.image_encoder  # load_photos
    training = settings(domain.image_encoder, args)
    average = train(model, loss_of, len(data.images), "image_encoder", training, args, ema_decay=EMA_DECAY)
    report = {}
    for number, source in enumerate(domain.sources):
        images = unseen.images[unseen.sources == number]
        report[source.path] = losses(average, frozen, images[some(images)], empty)
    print(json.dumps(report, indent=2))
    write_json(args.output / "measured_image_encoder.json", report)
    save(average, args.output)


if __name__ == "__main__":
    main()
