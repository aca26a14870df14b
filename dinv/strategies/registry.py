"""Strategies by name: a new one is a file here and a line below."""

from dinv.section import Registry

STRATEGIES = Registry(
    "strategy",
    {
        "diffusion_inversion": "dinv.strategies.diffusion_inversion:DiffusionInversion",
        "reconstruction": "dinv.strategies.reconstruction:Reconstruction",
    },
)
