"""Step 3 of remaking a bundled model: train its cross-attention UNet, without labels.

The UNet is conditioned on the tokens of the image encoder of step 2, with Gaussian noise of random
strength on them, so that it knows what to draw in the neighbourhood of an embedding; 10 % of the
tokens are replaced by learned "empty" tokens, the model's unconditional embedding. In a domain of captioned
images half of each batch is conditioned on the text encoder's states of a caption instead, and the
empty tokens are the first states of the empty prompt. What ships is a moving average of the weights.

    python -m models.pretraining.unet --domain models/domains/satellite.yaml --images pretrain.parquet \
        --output models/satellite-ldm
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from dinv.errors import UserError
from models.pretraining.data import load_captioned, load_images
from models.pretraining.domain import Domain, load_domain, symmetry
from models.pretraining.encoder import NUM_TOKENS, WIDTH, Contrastive
from models.pretraining.loop import (
    EMA_DECAY,
    WEIGHTS,
    argument_parser,
    mixed_precision,
    settings,
    start_from,
    train,
)
from models.pretraining.text import Captions, TextEncoder

MAX_TOKEN_NOISE = 1.5  # in units of the tokens' standard deviation
EMPTY_SHARE = 0.1


class Denoiser(nn.Module):
    """The UNet and its empty condition: tokens that it learns, or the states of the empty prompt, [L, D]."""

    def __init__(self, widths: tuple[int, ...], empty: torch.Tensor | None = None) -> None:
        super().__init__()
        levels = len(widths)
        self.unet: Any = UNet2DConditionModel(
            sample_size=8,
            in_channels=8,
            out_channels=8,
            down_block_types=["CrossAttnDownBlock2D"] * levels,
            up_block_types=["CrossAttnUpBlock2D"] * levels,
            block_out_channels=widths,
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=tuple(w // 32 for w in widths),  # diffusers' name for the number of heads
            norm_num_groups=16,
        )
        if empty is None:
            self.empty: torch.Tensor = nn.Parameter(torch.randn(NUM_TOKENS, WIDTH))
        else:
            self.register_buffer("empty", empty)

    def forward(
        self, noisy: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor, states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predicted noise of images with tokens [B, K, D]; the first of them get text `states` instead.

        A UNet has no mask for its condition, so K tokens and L states do not go through it together.
        """
        n = 0 if states is None else len(states)
        tokens = tokens[n:]
        tokens = tokens + MAX_TOKEN_NOISE * torch.rand(len(tokens), 1, 1) * torch.randn_like(tokens)
        predicted = self._predict(noisy[n:], t[n:], tokens)
        if states is None:
            return predicted
        return torch.cat([self._predict(noisy[:n], t[:n], states), predicted])

    def _predict(self, noisy: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Some conditions are emptied: of a prompt's states dinv takes as many as there are tokens."""
        n, length = condition.shape[:2]
        condition = torch.where(torch.rand(n, 1, 1) < EMPTY_SHARE, self.empty[:length], condition)
        return self.unet(noisy, t, condition).sample.float()


def earlier_steps(output: Path) -> tuple[Path, Path]:
    """Weights of the autoencoder, and the encoder's checkpoint; raises UserError where one is missing."""
    paths = output / "vae" / WEIGHTS, output.with_suffix(".encoder.ckpt")
    for path, step in zip(paths, ("vae", "encoder"), strict=True):
        if not path.exists():
            raise UserError(f"{path}: no such file; run python -m models.pretraining.{step} first")
    return paths


def load_encoder(path: Path, domain: Domain) -> Contrastive:
    """Step 2's network, from its checkpoint."""
    prefix = "model.model."
    tensors = {k.removeprefix(prefix): v for k, v in load_file(path).items() if k.startswith(prefix)}
    model = Contrastive(domain.channels)
    model.load_state_dict(tensors)
    return model.eval()


@torch.no_grad()
def latent_means(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Images [B, C, 32, 32] -> scaled means, float32 [B, 8, 8, 8]."""
    return vae.encode(images).latent_dist.mean.float() * vae.config.scaling_factor


class Encoders:
    """The frozen networks of steps 1 and 2."""

    def __init__(self, output: Path, domain: Domain) -> None:
        self.encoder = load_encoder(earlier_steps(output)[1], domain).encoder
        self.vae: Any = AutoencoderKL.from_pretrained(output / "vae", torch_dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, C, 32, 32] -> scaled latent means [B, 8, 8, 8] and tokens [B, K, D]."""
        return latent_means(self.vae, images), self.encoder(images)


def encode_all(encode: Encoders, images: torch.Tensor, symmetries: int) -> TensorDataset:
    """Latents and tokens of every image under every symmetry, float16: row `index * N + image`.

    Encoding costs a fifth of a training step; here each view is encoded once, not once per epoch.
    """
    latents, tokens = [], []
    for index in range(symmetries):
        for batch in tqdm(images.split(250), desc=f"encode, symmetry {index + 1} of {symmetries}"):
            z, c = encode(symmetry(batch, index))
            latents.append(z.half())
            tokens.append(c.half())
    return TensorDataset(torch.cat(latents), torch.cat(tokens))


def noise_schedule() -> Any:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="linspace",
        clip_sample=False,
    )


def save(model: Denoiser, output: Path) -> None:
    """Write the float16 model in diffusers layout; empty tokens that it has learned lie beside it."""
    model.unet.half().save_pretrained(output / "unet")
    noise_schedule().save_pretrained(output / "scheduler")
    stored = output / "empty_prompt_embeds.safetensors"
    if isinstance(model.empty, nn.Parameter):
        save_file({"prompt_embeds": model.empty.detach().half()}, stored)
    else:
        stored.unlink(missing_ok=True)  # dinv would take it before the text encoder


class Examples:
    """Everything the UNet trains on, encoded once: latents, tokens and, of captioned images, text states."""

    def __init__(self, args: Any, domain: Domain) -> None:
        encode = Encoders(args.output, domain)
        self.text = TextEncoder(args.output) if domain.sources else None
        data = load_captioned(args.images, domain) if domain.sources else None
        images = load_images(args.images, domain) if data is None else data.images
        self.num_images, self.symmetries = len(images), domain.symmetries
        self.views = encode_all(encode, images, domain.symmetries)
        if data and self.text:
            self.kinds, self.captions = data.kinds, Captions(data.captions)
            self.states = self.text(self.captions.texts)

    def empty(self) -> torch.Tensor | None:
        """States of the empty prompt, [L, D], of a model with text."""
        return self.text([""])[0] if self.text else None

    def draw(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Latents and tokens of one view of each image; states of a caption for the first half of them."""
        drawn = torch.randint(self.symmetries, ids.shape)
        clean, tokens = (x.float() for x in self.views[drawn * self.num_images + ids])
        if not self.text:
            return clean, tokens, None
        return clean, tokens, self.states[self.captions.draw(self.kinds[ids[: len(ids) // 2]])]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--start", type=Path, help="finished model whose UNet to start from")
    args = parser.parse_args()
    domain = load_domain(args.domain)
    torch.manual_seed(0)
    examples = Examples(args, domain)
    scheduler = noise_schedule()
    model = Denoiser(domain.unet.block_out_channels, examples.empty())
    if args.start:
        start_from(args.start, "unet", model.unet)
    model.to(memory_format=torch.channels_last)

    def loss_of(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        clean, tokens, states = examples.draw(ids)
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(ids),))
        noisy = scheduler.add_noise(clean, noise, t)
        with mixed_precision():
            loss = (model(noisy, t, tokens, states) - noise).square().mean()
        return loss, loss.detach()

    training = settings(domain.unet, args)
    average = train(model, loss_of, examples.num_images, "unet", training, args, ema_decay=EMA_DECAY)
    save(average, args.output)


if __name__ == "__main__":
    main()
