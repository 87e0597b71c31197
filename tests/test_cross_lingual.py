"""Across languages: who lends what, what is left out, what is refused, and a study from its spec to its matrix."""

import json

import pytest
import soundfile
import tongues
import toy
import yaml

from trainer.__main__ import main
from trainer.corpus import Reader
from trainer.fields import SpecError
from trainer.resolve import read_and_resolve
from trainer.spec import parse_job
from trainer.study import StudySpec, expand, presentations


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tongues.world(tmp_path_factory.mktemp("world"))


def settled(world, **fields):
    return read_and_resolve(parse_job(tongues.job(world, **fields)), [world])


def test_every_part_is_a_source_of_its_own(world):
    resolved, corpus = settled(world)
    found = {name: (pin.rows, pin.available, pin.modality) for name, pin in resolved.sources.items()}
    assert found == {
        "text": (8, 8, "text"), "speech": (8, 8, "speech"), "extra_text": (5, 14, "text"),
        "source_text": (20, 20, "text"), "source_speech": (5, 20, "speech"),
    }  # fmt: skip
    said = {u.text for u in corpus.sources["extra_text"].rows}
    assert said == {f"de-DE sentence {n}" for n in range(8, 13)}  # neither T's nor, but for case and a dot, the test's
    assert {u.language for u in corpus.test.rows} == {"de-DE", "es-ES", "vi-VN", "fr-FR"}
    assert (resolved.test.rows, resolved.spec.evaluate.on[0]) == (18, "de:test")
    again = type(resolved).model_validate_json(resolved.model_dump_json(by_alias=True))
    assert again.hash == resolved.hash
    assert read_and_resolve(again.spec, [world])[0].hash == resolved.hash


@pytest.mark.parametrize("seed", [0, 1])
def test_pairs_are_nested_and_counted(world, seed):
    def chosen(texts: int, recordings: int | None) -> tuple[set[str], set[str]]:
        data = {"corpus": "de", "text_rows": texts, "subset_seed": seed}
        corpus = settled(world, data={**data, **({} if recordings is None else {"speech_rows": recordings})})[1]
        read, spoken = ({u.id for u in corpus.sources[name].rows} for name in ("text", "speech"))
        return read, spoken

    few, heard = chosen(3, None)
    more, _ = chosen(5, None)
    assert len(few) == 3
    assert few < more
    assert heard == few  # T + S: texts and their speech
    texts, speech = chosen(5, 2)
    assert (texts, len(speech)) == (more, 2)
    assert speech < texts
    assert chosen(5, 0) == (more, set())  # T alone
    assert [len(side) for side in chosen(0, 4)] == [0, 4]
    zero = chosen(0, 0)
    assert zero == (set(), set())  # zero-shot


def test_the_source_lends_a_nested_share_of_its_recordings(world):
    def lent(share) -> set[str]:
        source = {"language": "fr", "data": "fr", "speech_fraction": share}
        return {u.id for u in settled(world, source=source)[1].sources["source_speech"].rows}

    assert len(lent("10%")) == 2
    assert lent("10%") < lent("50%") < lent(1.0)
    resolved, _ = settled(world, source={"language": "fr", "data": "fr", "speech_fraction": 0}, data={
        "corpus": "de", "speech_rows": 0, "extra_text": "more"})  # fmt: skip
    assert [stage.name for stage in resolved.stages] == ["text_only"]
    assert list(resolved.sources) == ["text", "extra_text", "source_text"]


def test_several_languages_lend(world, tmp_path):
    tongues.folder(tmp_path / "it", "it-IT", train=10)
    source = {"language": ["fr", "it"], "data": ["fr", str(tmp_path / "it")], "speech_fraction": "10%"}
    resolved, corpus = settled(world, source=source)
    assert resolved.sources["source_text"].rows == 30
    heard = [u.language for u in corpus.sources["source_speech"].rows]
    assert heard == ["fr-FR", "fr-FR", "it-IT"]  # a tenth of each
    assert resolved.sources["source_text"].ref == f"fr:train, {tmp_path / 'it'}:train"


def test_replace_never_shows_a_sentence_and_its_recording(world, tmp_path):
    data = {"corpus": "de", "speech_rows": 3}
    source = {"language": "fr", "data": "fr", "speech_fraction": "25%"}
    for pairing, texts in (("add", 8), ("replace", 5)):
        _, corpus = settled(world, data={**data, "pairing": pairing}, source=source)
        for lent in ("", "source_"):
            ids = [{u.id for u in corpus.sources[f"{lent}{name}"].rows} for name in ("text", "speech")]
            assert bool(ids[0] & ids[1]) == (pairing == "add")
        assert len(corpus.sources["text"].rows) == texts
    # Of two data sets the words tell which sentence is meant.
    tongues.folder(tmp_path / "said", "de-DE", train=3, first=6)
    data = {"text": "more", "speech": str(tmp_path / "said"), "pairing": "replace"}
    _, corpus = settled(world, data=data)
    texts = {u.text for u in corpus.sources["text"].rows}
    assert not texts & {u.text for u in corpus.sources["speech"].rows}
    assert len(texts) == 14 - 3


REFUSED = [
    ({"source": {"language": "it", "data": "fr"}}, "source.language: row fr-FR-0 of fr:train is in fr-FR, not in it"),
    ({"data": {"corpus": "de", "extra_text": "fr"}}, "data.extra_text: row fr-FR-0 of fr:train is in fr-FR, not in de"),
    ({"data": {"corpus": "de", "extra_text": "de"}}, "data.extra_text: the test or the text has every one of its"),
    ({"data": {"corpus": "de", "text_rows": 9}}, "data.text_rows: there are 8 sentences; ask for at most 8"),
    ({"data": {"corpus": "de", "speech_rows": 9}}, "data.speech_rows: there are 8 recordings; ask for at most 8"),
    ({"data": {"corpus": "de", "speech_rows": 4, "speech_fraction": "5%"}}, "both choose the recordings; keep one"),
    ({"data": {"speech": "de", "text_rows": 4}}, "text_rows counts sentences; give corpus or text"),
    ({"data": {"corpus": "de", "pairing": "replace"}}, "data.pairing: recordings stand in the place of all 8"),
    ({"data": {"corpus": "de", "speech_rows": 2, "pairing": "replace"},
      "recipe": {"name": "limited_speech", "scheme": "text_only"}}, "data.pairing: leaves out the sentences of"),
    ({"recipe": "salad"}, "source: recipe salad shows none of its rows; use limited_speech or sft"),
    ({"recipe": "salad", "source": None}, "data.extra_text: recipe salad shows none of its sentences"),
    ({"evaluate": {"on": ["es:test", "vi:test"]}}, "evaluate.on: no row is in the target language, de, but in es"),
    ({"evaluate": {"on": []}}, "evaluate.on: names no test set"),
    ({"evaluate": {"on": ["de:test", "de:test"]}}, "evaluate.on: utterance de-DE-1000 is in de:test and in de:test"),
    ({"evaluate": {"on": ["de:test", "fr:train"]}}, "source.data: utterance fr-FR-"),
    ({"source": {"language": [], "data": "fr"}}, "name at least one language and one data set"),
    ({"source": {"language": "fr", "data": ["fr", "fr:train"]}}, "source.data: names fr:train twice"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_what_does_not_fit_is_refused(world, fields, words):
    with pytest.raises(SpecError) as caught:
        settled(world, **fields)
    assert words in str(caught.value)


def test_a_sentence_number_in_two_languages_is_no_leak_but_its_words_are(tmp_path):
    """One folder with all languages, where numbers name sentences: `5` of fr to train on, `5` of de to test."""
    tongues.folder(tmp_path / "all", "de-DE", test=2, prefix=False)
    rows = (tmp_path / "all" / "test.jsonl").read_text()
    french = rows.replace('"test"', '"train"').replace("de-DE", "fr-FR").replace("audio/", "audio/fr-")
    (tmp_path / "all" / "train.jsonl").write_text(french)
    tongues.folder(tmp_path / "de", "de-DE", train=4)
    fields = {"data": {"corpus": "de"}, "evaluate": {"on": ["all:test"]}}
    source = {"language": "fr", "data": "all:train"}
    resolved, _ = read_and_resolve(parse_job(tongues.job(tmp_path, source=source, **fields)), [tmp_path])
    assert resolved.sources["source_text"].rows == 2
    (tmp_path / "all" / "train.jsonl").write_text(french.replace("fr-FR sentence", "de-DE sentence"))
    with pytest.raises(SpecError, match=r"source\.data: utterance 1000 is in the test set too"):
        read_and_resolve(parse_job(tongues.job(tmp_path, source=source, **fields)), [tmp_path])


def test_a_study_over_source_speech_and_target_conditions(world):
    given = tongues.job(world, recipe={"name": "limited_speech"})
    del given["name"], given["steps"]
    given["data"] = {"corpus": "de", "text_rows": 4}
    grid = {"source.speech_fraction": ["10%", "100%"], "speech_rows": [0, 4], "extra_text": [None, "more"]}
    study = StudySpec.model_validate({"study": "s", "grid": grid, "also": [{"scheme": "text_only"}], **given})
    found = expand(study, Reader([world]))
    names = [cell.name for cell in found.cells]
    assert names[0] == "source.speech_fraction=10% speech_rows=0 extra_text=default"
    assert len(names) == 9
    assert len({run.steps for cell in found.cells for run in cell.runs}) == 1
    by_name = {cell.name: cell.runs[0] for cell in found.cells}
    full = by_name["source.speech_fraction=100% speech_rows=4 extra_text=more"]
    assert {name: pin.rows for name, pin in full.sources.items()} == {
        "text": 4, "speech": 4, "extra_text": 9, "source_text": 20, "source_speech": 20}  # fmt: skip
    assert presentations(full) == pytest.approx(1)
    assert [b.name for b in found.baselines] == ["majority", "untuned", "linear probe, 4 recordings"]


def test_a_cross_lingual_study_to_its_matrix(world, tmp_path):
    for n, path in enumerate(sorted({f for name in ("fr", "de", "es", "vi") for f in _audio(world / name)})):
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, toy.wave(toy.HERTZ[int(path.stem) % 3], 0.4, seed=n), 16000)
    given = tongues.job(world, base=str(toy.base(tmp_path / "base")), steps=6, tuning={"rank": 2, "encoder": "frozen"})
    del given["name"]
    given["evaluate"] |= {"decode": {"max_new_tokens": 3}, "text_twin": False}
    given |= {"study": "across", "grid": {"scheme": ["text_only", "curriculum"]}, "controls": ["majority"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(given))
    out = tmp_path / "out"
    assert main([str(tmp_path / "study.yaml"), "--out", str(out), "--data-root", str(world)]) == 0
    matrix = json.loads((out / "report.json").read_text())["transfer"]
    assert matrix["languages"] == ["de-DE", "es-ES", "fr-FR", "vi-VN"]
    rows = {row["row"]: row for row in matrix["rows"]}
    assert list(rows) == ["text_only", "curriculum", "majority"]
    for row in rows.values():
        assert row["trained_on"] == ["de", "fr"]
        assert [cell["n"] for cell in row["languages"]] == [6, 4, 4, 4]
        assert [cell["seen"] for cell in row["languages"]] == [True, False, True, False]
    text = (out / "report.txt").read_text()
    assert "accuracy by language (utterances): de-DE 6, es-ES 4, fr-FR 4, vi-VN 4." in text
    assert "8+5" in text  # recordings of the target, and those that the source lends


def _audio(folder):
    rows = (json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines())
    return [folder / row["audio"] for row in rows]
