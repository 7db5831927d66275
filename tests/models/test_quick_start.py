"""timm's import leaves the compiler for later, and later there is all of it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import dri_iqa.models
import timm, torch, torchvision
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]

boxes, picture = torch.tensor([[0.0, 0, 0, 4, 4]]), torch.full((1, 1, 8, 8), 3.0)
assert torchvision.ops.roi_align(picture, boxes, 1).item() == 3
from torch._dynamo.utils import is_compile_supported
from torch._dynamo import disable, explain
assert callable(is_compile_supported), callable(disable)

def twice(x):
    return decorated(x) * 2

decorated = dri_iqa.models.quick_start._disable(lambda x: x + 1)
assert twice(torch.ones(2)).tolist() == [4, 4]
found = explain(twice)(torch.ones(2))
assert found.graph_break_count == 0 and found.graph_count == 1, found  # one call is left out, one product remains
"""


def test_timm_is_imported_without_the_compiler() -> None:
    answer = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
