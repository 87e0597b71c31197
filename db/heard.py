"""What a validation has heard of a data set's recordings, kept in the store a slice at a time: whoever goes on after a
process that died decodes the rest only."""

import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from trainer.audio import AudioError
from trainer.manifest import Utterance
from trainer.object_store import file_digest
from trainer.recordings import Recording, examine
from trainer.store import Store

SLICE_S = 15.0
"""Work that is lost at most."""


class Heard:
    """`recordings.examine` with a memory at `place`. Known are a file's bytes, not its name: a file that changed is
    another."""

    def __init__(self, store: Store, place: str):
        self.store, self.place, self.known = store, f"{place}/heard", dict[tuple, Recording]()
        for key in store.list(f"{self.place}/"):
            for line in store.get(key).splitlines():
                (sha256, offset, duration), facts = json.loads(line)
                self.known[sha256, offset, duration] = Recording(**facts)
        self._new, self._since = list[str](), time.monotonic()

    def __call__(self, row: Utterance) -> Recording | AudioError | None:
        """What there is to know of a row's recording; what is wrong with it is looked at anew every time."""
        if row.audio is None or not os.path.isfile(row.audio):
            return examine(row)
        key = (file_digest(Path(row.audio))[1], row.offset_s, row.duration_s)
        found = self.known.get(key) or examine(row)
        if isinstance(found, Recording) and key not in self.known:
            self.known[key] = found
            self._new.append(json.dumps([key, asdict(found)]))
        if self._new and time.monotonic() - self._since > SLICE_S:
            data = "".join(f"{line}\n" for line in self._new).encode()
            self.store.put(f"{self.place}/{hashlib.sha256(data).hexdigest()}.jsonl", data)
            self._new, self._since = [], time.monotonic()
        return found
