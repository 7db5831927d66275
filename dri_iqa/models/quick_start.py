"""timm and torchvision without the compiler that their import loads, and that scoring a photograph never calls.

torchvision's `roi_align` takes a function from `torch._dynamo` in order to compile itself lazily, and timm's
`naflexvit` decorates methods with `torch.compiler.disable`. Either imports all of the compiler, which takes as long
as importing torch. Here both get theirs when they call it.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from torch._compile import _disable_dynamo

_COMPILER = "torch._dynamo"


def import_timm() -> None:
    """Import timm as ever, but for `torch._dynamo`, unless that is there already or timm is."""
    if _COMPILER in sys.modules or "timm" in sys.modules:
        return
    package, utils = ModuleType(_COMPILER), ModuleType(f"{_COMPILER}.utils")
    vars(package)["disable"] = _disable
    vars(utils)["is_compile_supported"] = _is_compile_supported
    stand_ins = {module.__name__: module for module in (package, utils)}
    sys.modules.update(stand_ins)
    try:
        importlib.import_module("timm")
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _disable(fn=None, recursive: bool = True, *, reason: str | None = None):
    return _disable_dynamo(fn, recursive)  # the same, from the first call on


def _is_compile_supported(device_type: str) -> bool:
    return importlib.import_module(f"{_COMPILER}.utils").is_compile_supported(device_type)


import_timm()
