"""Tiny random models and data that tests make and save: every code path, no weights, seconds."""

import gzip
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dinv.classify.cnn import CnnParams
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import load_model
from dinv.diffusion.params import ModelParams
from dinv.inversion.invert import ImageEmbeddingsParams
from dinv.params import load_params
from dinv.strategies.diffusion_inversion import DiffusionInversionParams

ROOT = Path(__file__).parents[1]
PARAMS = load_params(ROOT / "params.yaml")


def unet_config(width: int = 16, cross_attention: bool = True, latent_channels: int = 4) -> dict:
    kind = "CrossAttn" if cross_attention else ""
    return {
        "sample_size": 8,
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "down_block_types": [f"{kind}DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", f"{kind}UpBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if cross_attention else "UNetMidBlock2D",
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": width,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }


def save_tiny_model(
    folder: Path,
    *,
    num_channels: int = 3,
    text: bool = True,
    width: int = 16,
    prediction_type: str = "epsilon",
    cross_attention: bool = True,
    text_width: int | None = None,
    seed: int = 0,
) -> Path:
    """A random model in diffusers layout: f = 2, so 16-pixel images have 8x8 latents."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=num_channels,
        out_channels=num_channels,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    vae.save_pretrained(folder / "vae")
    UNet2DConditionModel(**unet_config(width, cross_attention)).save_pretrained(folder / "unet")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDIMScheduler(prediction_type=prediction_type, **schedule).save_pretrained(folder / "scheduler")
    if text:
        save_tiny_text_encoder(folder, text_width or width)
    else:
        empty = {"prompt_embeds": torch.randn(5, text_width or width)}
        save_file(empty, folder / "empty_prompt_embeds.safetensors")
    return folder


def save_tiny_text_encoder(folder: Path, width: int) -> None:
    tokens = ["!", "a</w>", "<|startoftext|>", "<|endoftext|>"]
    source = folder / "tokenizer-source"
    source.mkdir(parents=True)
    (source / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(source / "vocab.json"), str(source / "merges.txt"), model_max_length=8)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=4,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=2,
        eos_token_id=3,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def model_params(folder: Path, **update: object) -> ModelParams:
    values = {"path": str(folder), "dtype": "float32", "resolution": 16}
    return ModelParams(**{**values, **update})


def load_tiny(folder: Path, **update: object) -> LatentDiffusion:
    return load_model(folder, model_params(folder, **update), torch.device("cpu"))


def invert_params(**update: object) -> ImageEmbeddingsParams:
    plain = {"lr": 0.03, "lr_schedule": "constant", "timestep_sampling": "uniform"}
    params = PARAMS.invert["embeddings"]
    return params.model_copy(update={"num_visits": 4, "num_tokens": 3, **plain, **update})


def generate_params(**update: object) -> DiffusionInversionParams:
    small = {"num_images_per_embedding": 2, "num_inference_steps": 3, "guidance_scale": 1.0}
    return PARAMS.generate["inversion"].model_copy(update={**small, **update})


def train_params(**update: object) -> CnnParams:
    small = {"num_steps": 12, "batch_size": 8, "warmup_steps": 2, "seeds": [0, 1]}
    return PARAMS.train["cnn"].model_copy(update={**small, **update})


def random_images(n: int, side: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), np.uint8)


def save_tiny_fashion_mnist(folder: Path, per_class: int = 6, side: int = 12) -> Path:
    """The four idx files with small images whose brightness tells their class."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
    for split in ("train", "t10k"):
        noise = rng.integers(0, 20, (len(labels), side, side))
        images = (noise + labels[:, None, None].astype(int) * 23).astype(np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
    return folder


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))
