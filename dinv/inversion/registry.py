"""Methods of stage `invert` by name: a new one is a file here and a line below."""

from dinv.section import Registry

METHODS = Registry(
    "method",
    {
        "class_embeddings": "dinv.inversion.class_embeddings:ClassEmbeddings",
        "class_lora": "dinv.inversion.class_lora:ClassLora",
        "gan": "dinv.inversion.gan:GanMethod",
        "image_embeddings": "dinv.inversion.image_embeddings:ImageEmbeddings",
        "prompt_bank": "dinv.inversion.prompt_bank:PromptBank",
        "warm_image_embeddings": "dinv.inversion.warm_start:WarmImageEmbeddings",
    },
)
