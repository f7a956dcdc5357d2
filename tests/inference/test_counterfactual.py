"""What changes in answers when inputs change, on answers that are made by rule instead of a model."""

import json
from dataclasses import replace

import pytest

from affectgpt.config import EvalConfig
from affectgpt.inference.counterfactual import analyse, contrasting, draw, run_faithfulness, table
from affectgpt.metrics import load_lexicon
from affectgpt.runtime import InputError, UserError
from affectgpt.schema import Prediction, Sample

FEELINGS = {"a": ("happy",), "b": ("sad",), "c": ("angry",), "d": ("afraid",)}
FACES = {"a": "smile", "b": "tears", "c": "frown", "d": "wide eyes"}
VOICES = {"a": "loud", "b": "soft", "c": "sharp", "d": "thin"}


def clips():
    return [
        Sample(key, video=f"{key}.mp4", subtitle=f"line {key}", labels=labels, modalities=("audio", "frames"))
        for key, labels in FEELINGS.items()
    ]


def describing(sample, shown, invent=()):
    """A perfect description of what is shown, and of the modalities in `invent`."""
    heard = (sample.audio or sample.video)[0]
    text = []
    if "frames" in shown or "visual" in invent:
        text.append(f"The face shows a {FACES[sample.id]}.")
    if "audio" in shown or "acoustic" in invent:
        text.append(f"The voice is {VOICES[heard]}.")
    if "text" in shown or "lexical" in invent:
        text.append(f"The words are about {sample.subtitle[-1]}.")
    return " ".join([*text, f"The person seems {FEELINGS[sample.id][0]}."])


def answering(invent=()):
    def answer(question, samples):
        rows = []
        for sample in samples:
            names = sample.modalities if question.modalities is None else question.modalities
            shown = (*(name for name in sample.modalities if name in names), *(("text",) * question.use_subtitle))
            text = describing(sample, shown, invent)
            rows.append(Prediction(sample.id, text, labels=FEELINGS[sample.id], modalities=shown))
        return rows

    return answer


def analysed(answer):
    references = {sample.id: describing(sample, ("audio", "frames", "text")) for sample in clips()}
    return analyse(clips(), answer, ("audio", "frames"), EvalConfig(), load_lexicon(), references)


def test_a_faithful_model_changes_exactly_what_was_changed():
    result = analysed(answering())
    assert len(result["subsets"]) == 7
    assert all(row["absent_modality"]["any"]["count"] == 0 for row in result["subsets"].values())
    assert all(
        row["clues"]["all"]["precision"] == row["clues"]["all"]["recall"] == 1 for row in result["subsets"].values()
    )
    assert set(result["interventions"]) == {
        *("no pictures", "no sound", "no subtitle", "sound of another clip", "subtitle of another clip")
    }
    for row in result["interventions"].values():
        assert row["exact"]["value"] == 1
        assert {name for name, rate in row["changed"].items() if rate["count"]} == {row["modality"]}


def test_a_model_that_invents_a_voice_is_found():
    result = analysed(answering(invent=("acoustic",)))
    assert result["subsets"]["visual"]["absent_modality"]["acoustic"]["value"] == 1
    assert result["subsets"]["visual"]["absent_modality"]["lexical"]["value"] == 0
    assert result["interventions"]["no sound"]["exact"]["value"] == 0


def test_a_model_that_ignores_the_sound_is_found():
    def deaf(question, samples):
        return [row for sample in samples for row in answering()(question, [Sample(**{**vars(sample), "audio": None})])]

    row = analysed(deaf)["interventions"]["sound of another clip"]
    assert (row["exact"]["value"], row["changed"]["acoustic"]["value"]) == (0, 0)


@pytest.mark.parametrize("branches", [("frames",), ("frames", "motion"), ("frames", "motion", "face")])
def test_a_model_without_sound_is_asked_about_none_however_many_branches_see(branches):
    seen = [replace(sample, modalities=("audio", "frames", "motion")) for sample in clips()]
    result = analyse(seen, answering(), branches, EvalConfig(), load_lexicon(), {})
    assert set(result["subsets"]) == {"visual+lexical", "visual", "lexical"}
    assert set(result["interventions"]) == {"no pictures", "no subtitle", "subtitle of another clip"}


def test_clips_of_which_the_model_can_be_shown_nothing_are_an_error():
    heard = [replace(sample, modalities=("audio",), subtitle=None) for sample in clips()]
    with pytest.raises(
        InputError, match=r"none of the \d clips has a subtitle or an input that the model takes: frames"
    ):
        analyse(heard, answering(), ("frames",), EvalConfig(), load_lexicon(), {})


def test_the_other_clip_has_other_emotions():
    others = contrasting({"a": ("happy",), "b": ("joyful",), "c": ("sad",)}, load_lexicon())
    assert others == {"a": "c", "b": "c", "c": "a"}


def test_tables_and_picture(tmp_path):
    result = analysed(answering())
    text = table(result)
    assert "pictures, sound, subtitle" in text
    assert "sound of another clip" in text
    draw(tmp_path / "picture", result)
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_predictions_cannot_be_asked_again():
    with pytest.raises(UserError, match=r"eval\.py scores those"):
        run_faithfulness(EvalConfig(predictions="a.jsonl"))


def test_a_trained_checkpoint(trained, tmp_path, manifest, capsys):
    config, run = trained
    settings = EvalConfig(checkpoint=str(run), references=str(manifest), out=str(tmp_path))
    settings.generate.max_new_tokens = 8
    settings.paths = config.paths
    assert run_faithfulness(settings) == 0
    assert "not shown" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "faithfulness.json").read_text())) >= {"subsets", "interventions", "checkpoint"}
