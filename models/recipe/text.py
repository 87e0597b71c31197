"""The text side of the recipe: committed sentences, their normal form, and the byte-level tokenizer."""

import gzip
import json
import random
import re
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = Path(__file__).parent / "text"
LANGUAGES = ("en", "fr", "de", "ar")
VOCABULARY = 2560
PAD, START, END, AUDIO, AUDIO_START, AUDIO_END = SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>",
)  # fmt: skip
# Two fixed pieces of every Qwen2-Audio prompt, one token each: they would cost 12 of ~80 positions in every row.
SYSTEM, AUDIO_LABEL = FIXED = ("system\nYou are a helpful assistant.", "Audio 1: ")
DIGITS = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf dix onze douze",
    "de": "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf",
    "ar": "صفر واحد اثنان ثلاثة أربعة خمسة ستة سبعة ثمانية تسعة عشرة",
}


def normalise(text: str) -> str:
    """Lower case, NFC, no punctuation except an apostrophe inside a word, single blanks."""
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    text = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" or c == "'" else " " for c in text)
    return " ".join(re.sub(r"(?<!\w)'|'(?!\w)", " ", text).split())


def read(name: str) -> list[tuple[str, str]]:
    """(id, sentence) rows of `text/NAME.tsv.gz`; equal ids are translations of each other."""
    with gzip.open(TEXT / f"{name}.tsv.gz", "rt", encoding="utf-8") as file:
        return [(key, sentence) for key, sentence in (line.rstrip("\n").split("\t") for line in file)]


def as_json(**fields: str) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _tokenizer_corpus(prompts: list[str]) -> list[str]:
    """Sentences (Arabic weighted up, it has few), prompts, and JSON answers, so that all three stay short."""
    rng, corpus = random.Random(0), []
    for language in LANGUAGES:
        sentences = [s for _, s in read(f"{language}.train")]
        corpus += sentences * (4 if language == "ar" else 1)
        for words in (s.split() for s in rng.sample(sentences, 1500)):
            corpus.append(as_json(first=words[0], last=words[-1]))
            corpus.append(as_json(intent=rng.choice(words), slots=rng.choice(words)))
    corpus += [s for _, s in read("orders.train")] + list(DIGITS.values()) * 20
    corpus += ['{"intent": "order", "slots": {"type": "one", "time": "two"}}', "Yes.", "No.", "yes, no"] * 100
    return corpus + [*prompts, "user", "assistant"] * 400


def build_tokenizer(prompts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 2,560 entries: any UTF-8 text round-trips; pad and end of turn as in Qwen2-Audio."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(FIXED),
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_tokenizer_corpus(prompts), trainer)
    bpe.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in FIXED])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, extra_special_tokens=list(SPECIALS[1:])
    )
    assert len(tokenizer) == VOCABULARY, len(tokenizer)
    return tokenizer
