"""Other libraries, imported without what their samplers do not need."""

import importlib
import importlib.util
import sys
import types
from typing import Any

__all__ = ["k_diffusion_sampling"]


def k_diffusion_sampling() -> Any:
    """`k_diffusion.sampling` without the package's training code, or None if it
    cannot be imported.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        return None
    package, images = (
        types.ModuleType("k_diffusion"),
        types.ModuleType("torchvision.transforms"),
    )
    package.__path__ = list(spec.submodule_search_locations)
    images.functional = None
    stand_ins = {
        "k_diffusion": package,
        "torchvision": types.ModuleType("torchvision"),
        images.__name__: images,
    }
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules |= {
        name: module for name, module in stand_ins.items() if before[name] is None
    }
    try:
        return importlib.import_module("k_diffusion.sampling")
    except ImportError as error:
        print(f"k-diffusion cannot be imported, no rows for it: {error}")
        return None
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
