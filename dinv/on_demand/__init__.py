"""Generated images without a stored image set: made when they are asked for."""

from dinv.on_demand.dataset import GeneratedImages

__all__ = ["GeneratedImages"]
