"""WordNet's files: base forms, exceptions, synonyms; the same as nltk's reader on Debian's files."""

import io
import random
import zipfile

import pytest

from affectgpt.metrics import wordnet
from affectgpt.metrics.wordnet import ChineseWordNet, WordNet, find_wordnet
from affectgpt.runtime import MissingLibrary

LICENCE = "  1 This is the licence  \n"


def write_wordnet(folder):
    """mad = sore, goose = fool, run = hurry_up: three synsets in the layout of the database."""
    folder = folder / "wordnet"
    folder.mkdir()
    synsets = {
        "adj": "a 02 mad(p) 0 sore 2",
        "noun": "n 02 goose 0 Fool 1",
        "verb": "v 02 run 0 hurry_up 0",
        "adv": "",
    }
    words = {"adj": ["mad", "sore"], "noun": ["goose", "fool"], "verb": ["run", "hurry_up"], "adv": []}
    for part in words:
        synset = synsets.get(part, "")
        lines = [f"{word} {part[0]} 1 1 @ 1 0 {len(LICENCE):08d}  \n" for word in words[part]]
        (folder / f"index.{part}").write_text(LICENCE + "".join(lines), encoding="utf-8")
        row = f"{len(LICENCE):08d} 00 {synset} 000 | what it means; (not a word) 1  \n" if synset else ""
        (folder / f"data.{part}").write_text(LICENCE + row, encoding="utf-8")
        (folder / f"{part}.exc").write_text("geese goose\n" if part == "noun" else "", encoding="utf-8")
    return folder


def test_words_share_a_synset_with_their_base_forms_and_exceptions(tmp_path):
    reader = WordNet(write_wordnet(tmp_path))
    assert reader.synonyms("sore") == {"mad", "sore"}
    assert reader.synonyms("geese") == {"goose", "Fool"}  # listed as an exception; the case of a name is kept
    assert reader.synonyms("gooses") == {"goose", "Fool"}  # by the rule s -> nothing
    assert reader.synonyms("runs") == {"run", "hurry_up"}
    assert reader.synonyms("sores") == reader.synonyms("unheard") == frozenset()  # no such rule for adjectives
    assert {lemma.name() for synset in reader.synsets("sore") for lemma in synset.lemmas()} == {"mad", "sore"}


def test_chinese_synonyms_share_a_synset(tmp_path):
    table = tmp_path / "wn-data-cmn.tab"
    rows = [
        "# Chinese Open Wordnet\tcmn",
        "1-a\tcmn:lemma\t高兴",
        "1-a\tcmn:lemma\t开心",
        "2-n\tcmn:lemma\t高兴",
        "2-n\tcmn:def\t0\t词",
    ]
    table.write_text("\n".join(rows), encoding="utf-8")
    assert ChineseWordNet(table).synonyms("高兴") == {"高兴", "开心"}
    assert find_wordnet("zh", tmp_path).synonyms("词") == frozenset()


def test_the_files_are_found_unpacked_or_zipped_in_nltk_data_and_in_debians_folder(tmp_path, monkeypatch):
    data = pytest.importorskip("nltk.data")
    folder = write_wordnet(tmp_path)
    monkeypatch.setattr(data, "path", [str(tmp_path / "nltk")])
    monkeypatch.setattr(wordnet, "DEBIAN", tmp_path / "absent")
    with pytest.raises(MissingLibrary, match="install the package wordnet-base of Debian or Ubuntu, or run"):
        find_wordnet.__wrapped__("en")
    monkeypatch.setattr(wordnet, "DEBIAN", folder)
    assert find_wordnet.__wrapped__("en").place == str(folder)
    (tmp_path / "nltk" / "corpora").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "nltk" / "corpora" / "wordnet.zip", "w") as archive:
        archive.writestr("wordnet/", "")
        for file in folder.iterdir():
            archive.write(file, f"wordnet/{file.name}")
    found = find_wordnet.__wrapped__("en")
    assert found.place.endswith("wordnet.zip/wordnet/")
    assert found.synonyms("mad") == {"mad", "sore"}


def test_synonyms_are_those_of_nltks_reader():
    reader = pytest.importorskip("nltk.corpus.reader.wordnet")
    data = pytest.importorskip("nltk.data")
    if not wordnet.DEBIAN.is_dir():
        pytest.skip("Debian's wordnet-base is not installed")

    class OfDebian(reader.WordNetCorpusReader):
        """Without the files that Debian does not have, whose contents METEOR does not ask for."""

        def open(self, file):
            return io.StringIO() if file == "lexnames" else super().open(file)

        def map_wn(self, version="wordnet"):
            return None

    data.path.append(str(wordnet.DEBIAN))  # nltk reads no file outside its data folders
    try:
        theirs = OfDebian(data.FileSystemPathPointer(str(wordnet.DEBIAN)), None)
        theirs._lexnames = [""] * 64
        ours = WordNet(wordnet.DEBIAN)
        words = random.Random(0).sample(sorted(theirs._lemma_pos_offset_map), 500)
        words += [word + end for word in words[:100] for end in ("s", "es", "ed", "ing", "er", "est")]
        words += [form for forms in theirs._exception_map.values() for form in sorted(forms)[:50]]
        for word in words:
            assert ours.synonyms(word) == {name for synset in theirs.synsets(word) for name in synset.lemma_names()}, (
                word
            )
    finally:
        data.path.remove(str(wordnet.DEBIAN))
