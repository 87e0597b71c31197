"""A speech synthesiser small enough for a test: `tiny_tts.py WAV [TEXT_FILE] [--voice V] [--fail-on WORD] …`.

Noise whose length is the text's: the same for the same text and voice. Nothing is imported that takes time.
"""

import random
import sys
import time
import wave


def main(arguments: list[str]) -> None:
    """Options: `--fail-on`, `--hang-on`, `--silent-on` (ends well and writes nothing) a word of the text; `--log` a
    file that gets a line for every text."""
    options = {}
    while len(arguments) > 2 and arguments[-2].startswith("--"):
        name, options[name] = arguments[-2], arguments[-1]
        arguments = arguments[:-2]
    with open(arguments[1], "rb") if len(arguments) > 1 else sys.stdin.buffer as file:
        text = file.read().decode()
    if "--log" in options:
        with open(options["--log"], "a") as log:
            log.write(f"{text}\n")

    def meets(option: str) -> bool:
        return option in options and options[option] in text

    if meets("--fail-on"):
        print("first line")
        sys.exit(f"cannot say {options['--fail-on']}")
    if meets("--hang-on"):
        time.sleep(600)
    if meets("--silent-on"):
        return
    noise = random.Random(f"{text}/{options.get('--voice')}").randbytes(1600 + 160 * len(text))
    with wave.open(arguments[0], "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(b"".join(bytes((b, b % 32)) for b in noise))


if __name__ == "__main__":
    main(sys.argv[1:])
