"""Who says what: voices divided among splits, so that a test voice was never trained on, and rows among voices."""

import hashlib
from collections.abc import Iterable, Sequence

from attune.importing import SourceError
from attune.importing.split import SHARES, split_groups


def voices_of(
    splits: Iterable[str], voices: Sequence[str], held_out: Sequence[str], seed: int, notes: list[str]
) -> dict[str, list[str]]:
    """The voices of every split. `held_out`: those of all splits but train; without them `voices` are divided by hash,
    as speakers are, dev sharing with test where they do not reach. With too few for that every split has all of
    them, and a note says so. Without any voice the engine has one of its own.
    """
    splits = sorted(set(splits))
    if both := sorted(set(voices) & set(held_out)):
        raise SourceError(f"--voices-test {both[0]}: is among --voices too, so test voices would be trained on")
    if held_out:
        return {split: list(voices if split == "train" else held_out) for split in splits}
    if len(splits) < 2:
        return {split: list(voices) for split in splits}
    if len(voices) < 2:
        notes.append("voices: one for all splits, so a test says nothing about new voices; give more with --voices")
        return {split: list(voices) for split in splits}
    shares = {split: SHARES.get(split, 0.1) for split in splits}
    chosen = dict(zip(voices, split_groups(voices, shares, seed), strict=True))
    divided = {split: [voice for voice in voices if chosen[voice] == split] for split in splits}
    held = [split for split in splits if split != "train" and divided[split]]
    for split in splits:
        divided[split] = divided[split] or (divided[held[0]] if held else list(voices))
    said = "; ".join(f"{split} {', '.join(divided[split])}" for split in splits)
    notes.append(f"voices, divided by hash (seed {seed}): {said}")
    return divided


def voice_of(row: str, voices: Sequence[str], seed: int) -> str:
    """The voice of the row with this id, by hash: other rows do not move it. Empty where there are none."""
    if not voices:
        return ""
    digest = hashlib.sha256(f"voice/{seed}/{row}".encode()).digest()
    return voices[int.from_bytes(digest[:8], "big") % len(voices)]
