"""A speech synthesiser as a command: one text in, one recording out; nothing passes through a shell."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from attune.importing import SourceError
from trainer import audio

PLACES = ("wav", "text_file", "voice", "language")
"""What a template may name in braces: the file to write, a file that holds the text (else the text is the command's
standard input), the voice and the language of the row."""
TOLD = 2000
"""Bytes of what a failed command said last that are looked at."""


class SpeechError(ValueError):
    """One text could not be spoken; the message says what the command did."""


@dataclass(frozen=True)
class Engine:
    """A command template such as `espeak-ng -v {voice} -w {wav} -f {text_file}`, cut into arguments once; what takes
    the place of a name in braces stays within its argument, whatever it holds."""

    arguments: tuple[str, ...]
    timeout_s: float = 120.0
    """Seconds that one text may take; then the command and all it started are killed."""
    _running: set[subprocess.Popen] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def of(cls, template: str, timeout_s: float = 120.0) -> "Engine":
        """SourceError for a template that cannot work."""
        try:
            arguments = tuple(shlex.split(template))
        except ValueError as error:
            raise SourceError(f"--tts {template!r}: {error}; write it as in a shell") from None
        named = {name for argument in arguments for name in re.findall(r"\{(\w*)\}", argument)}
        if unknown := sorted(named - set(PLACES)):
            places = ", ".join(f"{{{name}}}" for name in PLACES)
            raise SourceError(f"--tts {template!r}: {{{unknown[0]}}} has no meaning; it may name {places}")
        if "wav" not in named:
            raise SourceError(f"--tts {template!r}: names no {{wav}}, the file that the command is to write; add it")
        return cls(arguments, timeout_s)

    def names(self, place: str) -> bool:
        """Whether the template asks for this."""
        return any(f"{{{place}}}" in argument for argument in self.arguments)

    @property
    def program(self) -> str:
        """What the engine is called: its program's name."""
        return Path(self.arguments[0]).name

    @property
    def shown(self) -> str:
        """The template for the data set's card: paths by their last part, as they mean nothing elsewhere."""
        return shlex.join(a if "{" in a else Path(a).name or a for a in self.arguments)

    def speak(self, text: str, out: Path, *, voice: str, language: str) -> None:
        """Write the recording `out` (a .wav in a folder that exists), whole or not at all. SpeechError: the command
        failed, took too long, or left no recording; SourceError: it cannot be started at all."""
        with tempfile.TemporaryDirectory(prefix=".saying-", dir=out.parent) as work:
            wav, text_file = Path(work, "clip.wav"), Path(work, "text.txt")
            text_file.write_text(text, encoding="utf-8")
            given = {"wav": wav, "text_file": text_file, "voice": voice, "language": language}
            pattern = re.compile(r"\{(" + "|".join(PLACES) + r")\}")
            command = [pattern.sub(lambda match: str(given[match[1]]), a) for a in self.arguments]
            self._run(command, text_file, Path(work, "said"))
            try:
                seconds = audio.info(wav).duration_s
            except audio.AudioError as error:
                what = "wrote nothing to {wav}" if error.code == "missing" else "wrote no recording to {wav}"
                raise SpeechError(f"{self.program} ended well and {what}") from None
            if not seconds:
                raise SpeechError(f"{self.program} wrote a recording of 0 s")
            os.replace(wav, out)

    def stop(self) -> None:
        """Kill what is being said just now."""
        with self._lock:
            for process in self._running:
                _kill(process)

    def _run(self, command: list[str], text_file: Path, said: Path) -> None:
        with said.open("wb") as output, text_file.open("rb") as text:
            stdin = subprocess.DEVNULL if self.names("text_file") else text
            try:
                process = subprocess.Popen(
                    command, stdin=stdin, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            except OSError as error:
                reason = error.strerror or error
                raise SourceError(f"--tts: {command[0]!r} cannot be started ({reason}); is it installed?") from None
        with self._lock:
            self._running.add(process)
        try:
            process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            raise SpeechError(f"{self.program} was killed after {self.timeout_s:g} s (--tts-timeout)") from None
        finally:
            _kill(process)
            process.wait()
            with self._lock:
                self._running.discard(process)
        if process.returncode:
            raise SpeechError(f"{self.program} ended with {process.returncode}: {_last_line(said)}")


def _kill(process: subprocess.Popen) -> None:
    """End a command that is still running, and what it has started: its group is its own, with its number."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _last_line(said: Path) -> str:
    with said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - TOLD))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")
