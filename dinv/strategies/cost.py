"""What an image costs: passes of one image through the UNet, a column of every table of images."""


def unet_passes(scheduler: str, num_steps: int, guidance_scale: float) -> int:
    """Passes of `num_steps` steps; PLMS takes its first step twice, guidance doubles each."""
    calls = num_steps + 1 if scheduler == "pndm" and num_steps > 1 else num_steps
    return calls * (2 if guidance_scale > 1 else 1)
