"""Chat files of ms-swift and LLaMA-Factory: `messages` or `conversations`, `audios`, the `<audio>` tag; Alpaca."""

import json
import re
from collections import Counter
from typing import Any

from attune.importing.source import BadRow, RawRow, Source

_TAG = re.compile(r"<audio>(.*?)</audio>|<audio>|<\|audio_bos\|>.*?<\|audio_eos\|>", re.DOTALL)
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def is_chat(row: Any) -> bool:
    """Whether a JSON object is one conversation."""
    return isinstance(row, dict) and bool(
        row.keys() & {"messages", "conversations"} or {"instruction", "output"} <= row.keys()
    )


def read_chat(source: Source) -> Source:
    """Turn rows of conversations into cells audio, text, answer (and intent, slots where the answer is JSON).

    What every spoken row asks is the instruction; a text-only row's own words are what differs from it. Rows with
    several recordings or several questions are left out: an utterance is one recording and one answer.
    """
    talks: list[tuple[RawRow, str, str | None, str]] = []
    for row in source.rows:
        try:
            talks.append((row, *_talk(row.cells)))
        except ValueError as error:
            source.bad.append(BadRow(row.line, str(error)))
    asked = Counter(user for _, user, audio, _ in talks if audio)
    instruction = asked.most_common(1)[0][0] if asked else _shared_start([user for _, user, _, _ in talks])
    if len(asked) > 1:
        source.notes.append(
            f"{len(asked)} different questions stand beside the recordings; the most frequent is the instruction, "
            "the row's own is kept in meta.prompt"
        )
    rows = []
    for row, user, audio, answer in talks:
        cells: dict[str, Any] = {k: v for k, v in row.cells.items() if k in ("id", "speaker", "split", "language")}
        cells |= {"audio": audio, **_answer(answer)}
        if audio is None:
            cells["text"] = _without(user, instruction)
        elif user != instruction:
            cells["prompt"] = user
        rows.append(RawRow(row.line, cells))
    source.rows, source.format = rows, "chat"
    source.instruction = instruction.strip() or None
    return source


def _talk(row: dict[str, Any]) -> tuple[str, str | None, str]:
    """(what the user says without the audio tag, audio path, what the assistant answers)."""
    if "output" in row and "messages" not in row and "conversations" not in row:
        said = "\n".join(str(row[key]) for key in ("instruction", "input") if row.get(key))
        turns = [("user", said), ("assistant", row["output"])]
    else:
        turns = []
        for turn in row.get("messages") or row.get("conversations") or []:
            if not isinstance(turn, dict):
                raise ValueError("a message must be an object with role and content")
            role = _ROLES.get(str(turn.get("role", turn.get("from"))))
            if role is None:
                raise ValueError(f"role {turn.get('role', turn.get('from'))!r} is unknown; use user and assistant")
            turns.append((role, turn.get("content", turn.get("value"))))
    audios = row.get("audios") or row.get("audio") or []
    audios = list(audios) if isinstance(audios, list | tuple) else [audios]
    said = {"user": [], "assistant": [], "system": []}
    for role, content in turns:
        text, inside = _content(content)
        said[role].append(text)
        audios = audios or inside
    if len(said["user"]) != 1 or len(said["assistant"]) != 1:
        raise ValueError(f"{len(said['user'])} questions and {len(said['assistant'])} answers; one of each is needed")
    if len(audios) > 1:
        raise ValueError(f"{len(audios)} recordings; an utterance has one")
    audio = audios[0] if audios else None
    if isinstance(audio, dict):
        audio = audio.get("path") or audio.get("url")
    if not audio and "<audio>" in said["user"][0]:
        raise ValueError("says <audio> but names no recording in 'audios'")
    user = _TAG.sub("", said["user"][0])
    return re.sub(r"\n\s*\n+", "\n", user).strip(), audio, said["assistant"][0].strip()


def _content(content: Any) -> tuple[str, list[Any]]:
    """A message's text, and the recordings that a list of parts holds (OpenAI and transformers style)."""
    if isinstance(content, str):
        return content, list(re.findall(r"<audio>(.+?)</audio>", content))
    if not isinstance(content, list):
        raise ValueError(f"content must be text or a list of parts, not {type(content).__name__}")
    texts, audios = [], []
    for part in content:
        if isinstance(part, dict) and "text" in part:
            texts.append(str(part["text"]))
        elif isinstance(part, dict) and "audio" in str(part.get("type", "")):
            audios.append(part.get("audio") or part.get("path") or part.get("audio_url") or part.get("url"))
    return "\n".join(texts), audios


def _answer(answer: str) -> dict[str, Any]:
    if answer.startswith("{"):
        try:
            value = json.loads(answer)
        except json.JSONDecodeError:
            return {"answer": answer}
        if "intent" in value or "slots" in value:
            return {"intent": value.get("intent"), "slots": value.get("slots", {})}
    return {"answer": answer}


def _shared_start(texts: list[str]) -> str:
    """The lines that all texts begin with: what is asked, before what is said."""
    if len(texts) < 2:
        return ""
    first, shared = texts[0].split("\n"), []
    for n, line in enumerate(first[:-1]):
        if any(text.split("\n")[n : n + 1] != [line] for text in texts):
            break
        shared.append(line)
    return "\n".join(shared)


def _without(user: str, instruction: str) -> str:
    if instruction and user.startswith(instruction):
        return user[len(instruction) :].strip()
    if instruction and user.endswith(instruction):
        return user[: -len(instruction)].strip()
    return user
