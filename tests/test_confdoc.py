from dataclasses import dataclass
from pathlib import Path

import pytest

from affectgpt.confdoc import document, fields_of, settings_of
from affectgpt.config import TrainConfig

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"


@dataclass
class Undocumented:
    steps: int = 1


def test_the_configuration_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == document()


def test_settings_are_listed_with_dotted_names_defaults_and_comments():
    settings = {name: (default, comment) for name, default, comment in settings_of(TrainConfig)}
    assert settings["stage.batch_size"][0] == "3"
    assert settings["name"][0] == "null"
    assert all(comment for _, comment in settings.values())


def test_a_field_without_a_comment_is_an_error():
    with pytest.raises(ValueError, match=r"Undocumented\.steps has no comment"):
        list(fields_of(Undocumented))
