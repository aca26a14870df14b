"""A frozen latent diffusion model with cross-attention, as a few pure functions of tensors.

Shapes: images uint8 [B, H, W, C]; latents float32 [B, c, h, w], already multiplied by the VAE's
scaling factor; prompt_embeds float32 [B, K, D]; timesteps int64 [B] in [0, T).
"""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dinv.diffusion.params import ModelParams
from dinv.errors import UserError

_SCHEDULE_KEYS = {
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
}


@dataclass(frozen=True)
class Posterior:
    """The VAE's Gaussian over latents: mean and standard deviation, float32 [B, c, h, w] each."""

    mean: torch.Tensor
    std: torch.Tensor


class LatentDiffusion:
    """VAE, UNet and noise schedule. Nothing in here is ever trained."""

    def __init__(
        self,
        vae: Any,
        unet: Any,
        schedule: dict[str, Any],
        empty_prompt: torch.Tensor | None,
        params: ModelParams,
    ):
        from diffusers import DDPMScheduler  # noqa: PLC0415 - takes seconds

        self.vae, self.unet, self.schedule = vae, unet, schedule
        self.params = params
        self._empty_prompt = empty_prompt
        self.scheduler = DDPMScheduler.from_config(schedule)
        self.alphas_cumprod = self.scheduler.alphas_cumprod.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type the networks compute in."""
        return getattr(torch, self.params.dtype)

    @property
    def width(self) -> int:
        """D, the UNet's cross-attention width."""
        return int(self.unet.config.cross_attention_dim)

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image's latents."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        side = self.params.resolution // factor
        return (int(self.unet.config.in_channels), side, side)

    def check(self) -> None:
        """Raise UserError where the components do not fit each other, dinv or the resolution."""
        place, config = f"model.path = {self.params.path!r}", self.unet.config
        blocks = [*config.down_block_types, str(config.mid_block_type), *config.up_block_types]
        if not any("CrossAttn" in block for block in blocks):
            raise UserError(
                f"{place}: its UNet has no cross-attention, so there is no embedding to learn; use "
                "a text-conditional model"
            )
        if config.in_channels != self.vae.config.latent_channels:
            raise UserError(
                f"{place}: UNet takes {config.in_channels} channels, VAE makes "
                f"{self.vae.config.latent_channels}; inpainting and image-to-image models are not "
                "supported"
            )
        if config.class_embed_type or config.addition_embed_type:
            raise UserError(
                f"{place}: its UNet needs further conditions (class or SDXL micro-conditioning); "
                "use a Stable Diffusion 1.x or 2.x layout"
            )
        if self._empty_prompt is not None and self._empty_prompt.shape[1] != self.width:
            raise UserError(
                f"{place}: prompt embeddings have width {self._empty_prompt.shape[1]}, its UNet's "
                f"cross-attention {self.width}; its parts belong to different models"
            )
        levels = len(self.vae.config.block_out_channels) + len(config.block_out_channels) - 2
        if self.params.resolution % 2**levels:
            raise UserError(
                f"model.resolution = {self.params.resolution}: must be a multiple of {2**levels} "
                "for this model"
            )

    def empty_prompt_embeds(self, num_tokens: int) -> torch.Tensor:
        """The first K tokens of the empty prompt's embedding, float32 [K, D], on the device.

        Raises:
            UserError: the model has none, or fewer tokens.
        """
        if self._empty_prompt is None:
            raise UserError(
                f"model.path = {self.params.path!r}: has no text encoder, so no empty prompt; set "
                "invert.init to normal and generate.unconditional to mean"
            )
        if len(self._empty_prompt) < num_tokens:
            raise UserError(
                f"invert.num_tokens = {num_tokens}: the empty prompt of this model has "
                f"{len(self._empty_prompt)} tokens; lower it, or avoid the empty prompt"
            )
        return self._empty_prompt[:num_tokens].to(self.device)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> Posterior:
        """Images uint8 [B, H, W, C] -> the VAE's posterior over scaled latents."""
        pixels = images.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        wanted = self.vae.config.in_channels
        if pixels.shape[1] == 1 and wanted == 3:
            pixels = pixels.expand(-1, 3, -1, -1)
        if pixels.shape[1] != wanted:
            raise UserError(
                f"data.mode: images have {pixels.shape[1]} channels, the model's VAE takes {wanted}; "
                f"set it to {'L' if wanted == 1 else 'RGB'}"
            )
        posterior = self.vae.encode(pixels.to(self.dtype)).latent_dist
        scale, shift = self._latent_scale()
        return Posterior((posterior.mean.float() - shift) * scale, posterior.std.float() * scale)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents -> images uint8 [B, H, W, C] on the CPU, rounded to nearest."""
        scale, shift = self._latent_scale()
        pixels = self.vae.decode((latents / scale + shift).to(self.dtype)).sample.float()
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous().cpu()

    def add_noise(self, z0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps."""
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return abar.sqrt() * z0 + (1 - abar).sqrt() * eps

    def predict(self, z_t: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The UNet's raw output, float32: eps, or v for v-prediction models."""
        z_t = z_t.to(self.dtype, memory_format=torch.channels_last)
        with self._attention(c.requires_grad):
            return self.unet(z_t, t, c.to(self.dtype)).sample.float()

    def target(self, z0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the UNet is trained to output: eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0."""
        if self.scheduler.config.prediction_type == "epsilon":
            return eps
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return abar.sqrt() * eps - (1 - abar).sqrt() * z0

    def _attention(self, needs_gradient: bool) -> AbstractContextManager[None]:
        """Plain matrix products where torch's fused backward pass is slow: bfloat16 on the CPU."""
        slow = needs_gradient and self.device.type == "cpu" and self.dtype == torch.bfloat16
        return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()

    def _latent_scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(scale, shift) of scaled latents (z - shift) scale, one number or [1, c, 1, 1] each."""
        config = self.vae.config
        scale, shift = torch.tensor(config.scaling_factor), torch.tensor(config.shift_factor or 0.0)
        if config.latents_mean is not None and config.latents_std is not None:  # as diffusers' SDXL does
            shift, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
            scale, shift = (scale / std).view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
        return scale.to(self.device), shift.to(self.device)


def read_schedule(folder: Path) -> dict[str, Any]:
    """The noise schedule's configuration: the same whatever scheduler class the model names.

    Raises:
        UserError: missing or broken file, or a prediction type other than epsilon and v.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: missing or not JSON; model.path must be a complete model in diffusers layout"
        ) from error
    prediction = config.setdefault("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise UserError(f"{path}: prediction_type {prediction!r}; only epsilon and v_prediction work")
    return {k: v for k, v in config.items() if k in _SCHEDULE_KEYS}
