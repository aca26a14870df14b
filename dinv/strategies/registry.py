"""Strategies by name: a new one is a file here and a line below."""

from dinv.section import Registry

STRATEGIES = Registry(
    "strategy",
    {
        "class_name_prompt": "dinv.strategies.class_name_prompt:ClassNamePrompt",
        "diff_ii": "dinv.strategies.diff_ii:DiffII",
        "diff_mix": "dinv.strategies.diff_mix:DiffMix",
        "diffusion_inversion": "dinv.strategies.diffusion_inversion:DiffusionInversion",
        "domain": "dinv.strategies.domain:Domain",
        "dreamda": "dinv.strategies.dreamda:DreamDA",
        "gan": "dinv.strategies.gan:GanSamples",
        "gan_inversion": "dinv.strategies.gan_inversion:GanInversion",
        "genie": "dinv.strategies.genie:Genie",
        "genie_ada": "dinv.strategies.genie_ada:GenieAda",
        "image_to_image": "dinv.strategies.image_to_image:ImageToImage",
        "import_folder": "dinv.strategies.import_folder:ImportFolder",
        "lecf": "dinv.strategies.lecf:Lecf",
        "other_class_guidance": "dinv.strategies.other_class_guidance:OtherClassGuidance",
        "pool_sample": "dinv.strategies.pool_sample:PoolSample",
        "reconstruction": "dinv.strategies.reconstruction:Reconstruction",
        "retrieval": "dinv.strategies.retrieval:Retrieval",
        "variation": "dinv.strategies.variation:Variation",
    },
)
