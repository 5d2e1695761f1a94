"""torchvision's models are imported without what they do not need."""

import subprocess
import sys

import pytest

from wsiad.networks.torchvision_models import operators_load

CLASSIFIER = """
import sys
from wsiad.networks.torchvision_models import torchvision_models
torchvision_models().squeezenet1_1(weights=None)
print(*(name in sys.modules for name in ("torch._dynamo", "torch._dynamo.utils", "sympy")))
"""

DETECTION = """
import sys
from wsiad.networks.torchvision_models import torchvision_models
if {first}:
    import torch._dynamo.utils
torchvision_models()
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported
there = "torch._dynamo" in sys.modules
found = asked("cpu")
import torch._dynamo.utils
print(there, found == torch._dynamo.utils.is_compile_supported("cpu"))
"""

ANYTHING_ELSE = """
import sys
from wsiad.networks import torchvision_models
with torchvision_models._compiler_later():
    from torch._dynamo.utils import counters, is_compile_supported
import torch._dynamo.utils
print(counters is torch._dynamo.utils.counters, torch._dynamo.utils.__file__ is not None)
"""

COMPILED = """
import sys
from wsiad.networks.torchvision_models import torchvision_models
network = torchvision_models().squeezenet1_1(weights=None).eval()
import torch
tiles, boxes = torch.rand(1, 3, 32, 32), torch.tensor([[0.0, 4.0, 4.0, 20.0, 20.0]])
align = sys.modules["torchvision.ops.roi_align"].roi_align
for function in (network, lambda x: align(x, boxes, (4, 4)) if {operators} else x + 1):
    found = torch.compile(function, backend="eager")(tiles)
    print(torch.equal(found, function(tiles)))
module = torch._dynamo.utils
print(module is sys.modules["torch._dynamo.utils"], module.__spec__.origin)
"""


def printed(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_classifiers_need_no_compiler():
    assert printed(CLASSIFIER) == ["False", "False", "False"]


def test_detection_networks_ask_the_compiler_when_they_run():
    assert printed(DETECTION.format(first=False)) == ["False", "True"]
    assert printed(DETECTION.format(first=True)) == ["True", "True"]


def test_whatever_else_torchvision_takes_is_the_compilers():
    assert printed(ANYTHING_ELSE) == ["True", "True"]


@pytest.mark.slow
def test_what_a_user_compiles_afterwards_is_compiled():
    found = printed(COMPILED.format(operators=operators_load()))
    assert found[:3] == ["True", "True", "True"]
    assert found[-1].endswith("utils.py")
