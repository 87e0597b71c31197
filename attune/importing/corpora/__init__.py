"""Published layouts by the names that `attune import` takes. Each reader fills a Corpus and says its layout."""

from collections.abc import Callable, Mapping

from attune.importing.corpora import (
    common_voice,
    kaldi,
    lhotse,
    librispeech,
    massive,
    mega_ssum,
    must_c,
    nemo,
    slue,
    slurp,
    spoken_squad,
)
from attune.importing.corpus import Corpus
from attune.importing.options import ImportOptions

CORPORA: Mapping[str, Callable[[Corpus, ImportOptions], None]] = {
    "slurp": slurp.read,
    "massive": massive.read_massive,
    "speech-massive": massive.read_speech_massive,
    "italic": massive.read_italic,
    "slue-voxceleb": slue.read_voxceleb,
    "slue-hvb": slue.read_hvb,
    "slue-voxpopuli": slue.read_voxpopuli,
    "must-c": must_c.read,
    "spoken-squad": spoken_squad.read,
    "mega-ssum": mega_ssum.read,
    "librispeech": librispeech.read,
    "libriheavy": lhotse.read_libriheavy,
    "common-voice": common_voice.read,
    "nemo": nemo.read,
    "lhotse": lhotse.read,
    "kaldi": kaldi.read,
}
