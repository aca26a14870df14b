"""Sources by name, functions load(root, seed) -> RawSplits: a new one is a file here and a line below."""

from dinv.section import Registry

SOURCES = Registry(
    "source",
    {
        "fashion_mnist": "dinv.sources.fashion_mnist:load",
        "image_folder": "dinv.sources.image_folder:load",
        "image_csv": "dinv.sources.image_csv:load",
        "parquet": "dinv.sources.parquet:load",
        "cifar10": "dinv.sources.cifar:load_cifar10",
        "cifar100": "dinv.sources.cifar:load_cifar100",
        "stl10": "dinv.sources.stl10:load",
        "imagenette": "dinv.sources.imagenette:load",
        "eurosat": "dinv.sources.eurosat:load",
        "pathmnist": "dinv.sources.medmnist:load_pathmnist",
        "dermamnist": "dinv.sources.medmnist:load_dermamnist",
        "bloodmnist": "dinv.sources.medmnist:load_bloodmnist",
    },
)
