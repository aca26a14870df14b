"""What tests of strategies share: a tiny model that reads prompts, tiny labelled images, every strategy with small parameters."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import tiny
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dinv.files import write_json
from dinv.images.fingerprint import write_fingerprints
from dinv.images.image_set import ImageSet, ImageSetReader, save_image_set
from dinv.images.resize import convert_batch
from dinv.inversion.bank import EmbeddingBank, save_bank
from dinv.strategies.base import Material
from dinv.strategies.registry import STRATEGIES

CLASS_NAMES = ["cat", "dog_house", "eel"]
LABELS = [0, 1, 2, 0, 1, 2, 0]  # every class twice at least: partners
PROMPT = "a photo of a {class}"
SAMPLER = {"guidance_scale": 2.0, "scheduler": "ddim", "num_inference_steps": 4, "seed": 0}
VARIANTS = {**SAMPLER, "prompt": PROMPT, "num_images_per_source": 2}
EDIT = {**VARIANTS, "strengths": [0.5, 1.0]}
FEATURES = {"network": "convnet", "path": "models/fashion-features"}
# Parameters of every strategy, small, all of them random where they can be.
BLOCKS = {
    "class_name_prompt": {**SAMPLER, "prompt": PROMPT, "num_images_per_class": 3},
    "image_to_image": EDIT,
    "genie": EDIT,
    "diff_mix": {**EDIT, "gamma": 0.8},
    "diff_ii": {
        **VARIANTS,
        "num_inversion_steps": 8,
        "suffixes": ["in snow", "at night"],
        "suffix_fraction": 0.5,
    },
    "dreamda": {**VARIANTS, "strength": 0.75, "bottleneck_std": 0.5},
    "genie_ada": {**VARIANTS, "strengths": [0.25, 0.5, 1.0], "features": FEATURES},
    "lecf": {
        **SAMPLER,
        "num_images_per_class": 3,
        "clip": {"path": "models/pretrained/clip", "prompt": PROMPT, "rule": "rank", "num_candidates": 2},
    },
    "retrieval": {
        "features": FEATURES,
        "num_images_per_source": 2,
        "resize": "squash",
        "max_duplicate_bits": 24,
    },
}
INPUTS = {"lecf": Path("data/learned/prompts"), "retrieval": Path("pool")}
POOL_SIZE = 9


def save_byte_tokenizer(folder: Path, length: int = 40) -> int:
    """CLIP's tokenizer without merges: a token per letter. Returns the size of its vocabulary."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    source = folder.parent / "tokenizer-source"
    source.mkdir(parents=True)
    (source / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(source / "vocab.json"), str(source / "merges.txt"), model_max_length=length)
    tokenizer.save_pretrained(folder)
    return len(tokens)


def save_reading_model(text_model_folder: Path, folder: Path) -> Path:
    """The tiny model with a text encoder that tells prompts apart."""
    shutil.copytree(text_model_folder, folder)
    for name in ("tokenizer", "tokenizer-source", "text_encoder"):
        shutil.rmtree(folder / name)
    config = folder / "scheduler/scheduler_config.json"  # the only offset that diffusers' pipelines accept
    config.write_text(json.dumps({**json.loads(config.read_text()), "steps_offset": 1}))
    size = save_byte_tokenizer(folder / "tokenizer")
    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def save_real(folder: Path, labels=LABELS, order=None) -> ImageSetReader:
    """Random 16-pixel images of three classes, in the given order."""
    order = list(order or range(len(labels)))
    images = ImageSet(
        tiny.random_images(len(labels)),
        np.asarray(labels, np.int64),
        [f"image-{i}" for i in range(len(labels))],
        CLASS_NAMES,
    ).take(order)
    save_image_set(images, folder)
    return ImageSetReader(folder)


def save_class_bank(folder: Path, tokens: int = 3) -> Path:
    """Learned embeddings of the three classes, out of order."""
    folder.mkdir(parents=True)
    c = torch.randn(3, tokens, 16, generator=torch.Generator().manual_seed(5))
    save_embeddings(folder, c, [2, 0, 1], ["eel", "cat", "dog_house"])
    return folder


def save_embeddings(folder: Path, c: torch.Tensor, labels: list[int], ids: list[str]) -> None:
    def curve():
        return torch.zeros(1).long(), torch.zeros(1, len(ids))

    bank = EmbeddingBank(c, torch.tensor(labels), ids, *curve(), *curve())
    save_bank(bank, folder / "part-00000.safetensors")


def save_clip(folder: Path, length: int = 40) -> Path:
    """A random CLIP with both encoders, which reads that many tokens."""
    size = save_byte_tokenizer(folder, length)
    torch.manual_seed(4)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small["projection_dim"] = 6
    text = {
        "vocab_size": size,
        "max_position_embeddings": length,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
    }
    vision = {"image_size": 28, "patch_size": 14}
    config = CLIPConfig(text_config={**small, **text}, vision_config={**small, **vision}, projection_dim=6)
    CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessor(**sizes).save_pretrained(folder)
    return folder


def save_pool(folder: Path, copied: np.ndarray) -> None:
    """Nine pictures of 20 pixels, and as the tenth one of the task's own."""
    folder.mkdir(parents=True)
    for i, image in enumerate(tiny.random_images(POOL_SIZE, side=20, seed=7)):
        Image.fromarray(image).save(folder / f"{i}.png")
    (folder / "deeper").mkdir()
    Image.fromarray(resized(copied[None], 24)[0, ..., 0]).save(folder / "deeper/copy.jpg", quality=90)


def save_workplace(root: Path) -> Path:
    """A folder to work in, with what strategies read besides the real images."""
    (root / "models/pretrained").mkdir(parents=True)
    (root / "models/fashion-features").symlink_to(tiny.ROOT / "models/fashion-features")
    save_clip(root / "models/pretrained/clip")
    held_out = clothes(3)
    write_fingerprints([resized(held_out, 16)], root / "data/fingerprints.txt")
    save_pool(root / "pool", held_out[1])
    prompts = {name: [f"{name} {i}" for i in range(2)] for name in CLASS_NAMES}
    write_json(root / "data/learned/prompts/prompts.json", prompts)
    return root


def clothes(n: int, skip: int = 0) -> np.ndarray:
    """Real pictures, of the test images that ship with dinv: grey, uint8 [n, 28, 28, 1]."""
    with gzip.open(tiny.ROOT / "data/bundled/fashion-mnist/t10k-images-idx3-ubyte.gz") as file:
        pixels = file.read(16 + (skip + n) * 28 * 28)[16 + skip * 28 * 28 :]
    return np.frombuffer(pixels, np.uint8).reshape(n, 28, 28, 1)


def resized(images: np.ndarray, side: int) -> np.ndarray:
    return convert_batch(images, side, images.shape[3])


def make(name: str, real: ImageSetReader, model, folder: Path | None = None, **update):
    """A strategy by its name, with parameters validated as those of params.yaml are."""
    folder = folder or INPUTS.get(name, Path("data/real/train"))
    implementation = STRATEGIES[name]
    block = {**BLOCKS.get(name, {}), "strategy": name, "input": folder.as_posix(), **update}
    params = implementation.Params.model_validate(block)
    return implementation(params, Material(real, folder, lambda: model))


def plan(strategy):
    return strategy.draws(range(len(strategy)))


def render(strategy, model, draws=None, micro_batch=None):
    inputs = strategy.inputs(draws or plan(strategy))
    opened = strategy.renderer().open(lambda: model)
    if micro_batch is None:
        return opened(inputs)
    n = len(next(iter(inputs.values())))
    pieces = [{k: v[i : i + micro_batch] for k, v in inputs.items()} for i in range(0, n, micro_batch)]
    return torch.cat([opened(piece) for piece in pieces])
