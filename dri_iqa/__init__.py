"""DRI-IQA: no-reference image quality that also holds for restored pictures (WACV 2025).

from dri_iqa import load_model
model = load_model("runs/champion")
table = model.score(["a.jpg", image_bytes, array_HWC])

Importing this package is cheap: torch is loaded with the first model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dri_iqa.scoring import Scorer, load_model

__all__ = ["Scorer", "__version__", "load_model"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("Scorer", "load_model"):
        from dri_iqa import scoring

        return getattr(scoring, name)
    raise AttributeError(f"module 'dri_iqa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
