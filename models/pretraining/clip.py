r"""Step for captioned images: train a small CLIP (Radford et al. 2021), whose text side conditions the UNet.

Images and captions of the same kind get similar features. A batch holds many images of a kind, and
a kind's captions say the same in other words, so the loss takes every caption of an image's kind as
right, in equal shares, not only its own. Images are mirrored and shifted. Writes tokenizer/ and
text_encoder/ as Stable Diffusion has them, and clip/, the whole network: a moving average of the weights.

    python -m models.pretraining.clip --domain models/domains/photos.yaml --images data \
        --output models/mini-sd
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from dinv.errors import UserError
from models.pretraining.data import Captioned, load_captioned
from models.pretraining.domain import IMAGE_SIZE, Domain, load_domain
from models.pretraining.encoder import WIDTH
from models.pretraining.features import augment
from models.pretraining.loop import EMA_DECAY, argument_parser, mixed_precision, settings, train
from models.pretraining.text import MAX_LENGTH, Captions, ids_of, train_tokenizer

LAYERS, HEADS, PATCH = 4, 4, 4


def small_clip(tokenizer: Any) -> Any:
    """A CLIPModel for 32-pixel images; about two million weights."""
    both = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": IMAGE_SIZE, "patch_size": PATCH}
    config = CLIPConfig(text_config=both | text, vision_config=both | vision, projection_dim=WIDTH)
    config._attn_implementation = "eager"  # torch's fused backward pass is slow in bfloat16 on the CPU
    return CLIPModel(config)


class Contrast(nn.Module):
    """Similarity of images and captions, [B, B] with images in rows."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        pictures, texts = image_features(self.clip, images), text_features(self.clip, ids)
        scale = self.clip.logit_scale.exp().clamp(max=100)
        return scale * (pictures @ texts.T)


def image_features(clip: Any, images: torch.Tensor) -> torch.Tensor:
    """Unit vectors of images [B, 3, 32, 32] in [-1, 1], float32 [B, D]."""
    pooled = clip.vision_model(pixel_values=images).pooler_output
    return F.normalize(clip.visual_projection(pooled).float(), dim=1)


def text_features(clip: Any, ids: torch.Tensor) -> torch.Tensor:
    """Unit vectors of token ids [B, L], float32 [B, D]."""
    return F.normalize(clip.text_projection(clip.text_model(input_ids=ids).pooler_output).float(), dim=1)


def clip_loss(similarity: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over rows and over columns, every pair of the same kind an equally right answer."""
    same = (kinds[:, None] == kinds).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


@torch.no_grad()
def zero_shot_accuracy(clip: Any, tokenizer: Any, data: Captioned) -> float:
    """Share of images that are most like the first caption of their own kind, among those of all kinds."""
    texts = text_features(clip, ids_of(tokenizer, [captions[0] for captions in data.captions]))
    parts = [image_features(clip, batch) @ texts.T for batch in data.images.split(250)]
    return float((torch.cat(parts).argmax(1) == data.kinds).float().mean())


def image_processor() -> Any:
    """Images of 32 pixels in [-1, 1]."""
    size, crop_size = {"shortest_edge": IMAGE_SIZE}, {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessor(size=size, crop_size=crop_size, image_mean=half, image_std=half)


def save(clip: Any, tokenizer: Any, output: Path) -> None:
    """Write clip/, which dinv's `network: clip` reads, and its text side as text_encoder/; float16."""
    clip.half().save_pretrained(output / "clip")
    tokenizer.save_pretrained(output / "clip")
    image_processor().save_pretrained(output / "clip")
    text = CLIPTextModel(clip.config.text_config)
    getattr(text, "text_model", text).load_state_dict(clip.text_model.state_dict())  # as transformers has it
    text.half().save_pretrained(output / "text_encoder")


def load_clip(output: Path) -> tuple[Any, Any]:
    """The network and tokenizer that `save` wrote."""
    clip = CLIPModel.from_pretrained(output / "clip", dtype=torch.float32, local_files_only=True)
    return clip.eval(), CLIPTokenizer.from_pretrained(output / "clip", local_files_only=True)


def load_photos(args: Any, domain: Domain) -> Captioned:
    if not domain.sources or domain.clip is None or domain.image_encoder is None:
        raise UserError(
            f"{args.domain}: needs sources, clip and image_encoder; see models/domains/photos.yaml"
        )
    return load_captioned(args.images, domain)


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    domain = load_domain(args.domain)
    torch.manual_seed(0)
    data = load_photos(args, domain)
    captions = Captions(data.captions)
    tokenizer = train_tokenizer(captions.texts, args.output / "tokenizer")
    ids_table = ids_of(tokenizer, captions.texts)
    model = Contrast(small_clip(tokenizer))

    def loss_of(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kinds = data.kinds[ids]
        with mixed_precision():
            similarity = model(augment(data.images[ids], domain), ids_table[captions.draw(kinds)])
        loss = clip_loss(similarity.float(), kinds)
        return loss, loss.detach()

    assert domain.clip  # load_photos
    training = settings(domain.clip, args)
    average = train(model, loss_of, len(data.images), "clip", training, args, ema_decay=EMA_DECAY)
    unseen = load_captioned(args.images, domain, unseen=True)
    for number, source in enumerate(domain.sources):
        accuracy = zero_shot_accuracy(average.clip, tokenizer, unseen.only(unseen.sources == number))
        print(f"zero-shot accuracy, unseen images of {source.path}: {accuracy:.4f}")
    save(average.clip, tokenizer, args.output)


if __name__ == "__main__":
    main()
