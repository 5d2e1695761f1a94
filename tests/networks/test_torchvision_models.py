"""torchvision's models are imported without what they do not need."""

import subprocess
import sys

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
