"""`import affectgpt` makes the model known to transformers."""

import subprocess
import sys

from affectgpt.models import build
from tests.models import tiny

WATCHED = """
import sys, affectgpt
print("torch" in sys.modules)
from transformers import AutoConfig, AutoProcessor
print(type(AutoProcessor.from_pretrained(sys.argv[1])).__module__)
print(type(AutoConfig.from_pretrained(sys.argv[1])).__module__)
"""


def test_auto_classes_know_the_model_after_the_import_and_without_torch_until_then(base_models, tmp_path):
    for part in build(tiny.tiny_spec(base_models, ("frames",))):
        part.save_pretrained(tmp_path)
    run = [sys.executable, "-c", WATCHED, str(tmp_path)]
    lines = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert lines == ["False", "affectgpt.models.processing_affectgpt", "affectgpt.models.configuration_affectgpt"]
