import copy

import pytest

from affectgpt.models import build
from affectgpt.training.stages import run_stage
from tests.conftest import make_train_config
from tests.models import tiny


@pytest.fixture(scope="module", params=[tiny.write_llama, tiny.write_qwen3], ids=["llama", "qwen3"])
def built(request, tmp_path_factory):
    """(model, processor) of an untrained tiny model."""
    paths = tiny.write_base_models(tmp_path_factory.mktemp("base"), request.param)
    model, processor = build(tiny.tiny_spec(paths))
    return model.eval(), processor


@pytest.fixture(scope="module")
def trained(base_models, manifest, tmp_path_factory):
    """(training configuration, run folder) of a finished run."""
    config = make_train_config(base_models, manifest, tmp_path_factory.mktemp("trained"), n_validation=0)
    return config, run_stage(copy.deepcopy(config)).run
