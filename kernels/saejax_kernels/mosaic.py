"""What the Mosaic GPU kernels share."""

from typing import Any

import jax


def interpreter() -> Any:
    """Return what interprets a Mosaic GPU kernel on the CPU, for tests."""
    # JAX 0.10 has it under this name alone.
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()


def runs_here() -> bool:
    """Tell whether JAX's default device is a GPU that the kernels are for: an NVIDIA one from Hopper on."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return capability[:1].isdigit() and float(capability) >= 9
