"""Archives from strangers: unpacked where they are what they seem, refused where they would do anything else."""

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from trainer.archive import HEADER, ArchiveError, unpack

FILES = {"train.jsonl": b"{}\n", "audio/a.wav": b"RIFF" * 100, "audio/deep/b ü.wav": b""}


def zipped(path: Path, files: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


def tarred(path: Path, members: list[tarfile.TarInfo | tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as out:
        for member in members:
            info, data = (member, b"") if isinstance(member, tarfile.TarInfo) else (_made(member[0]), member[1])
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def held(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "zip with folders", "pax"])
def test_what_is_right_is_unpacked(tmp_path, folder, kind):
    path = tmp_path / "archive"
    if kind.startswith("zip"):
        zipped(path, {**FILES, **({"audio/": b""} if "folders" in kind else {})})
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w",
                          format=tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT) as out:  # fmt: skip
            out.addfile(_made("./audio", type=tarfile.DIRTYPE))
            for name, data in {**FILES, "long/" * 40 + "x.wav": b"x"}.items():
                out.addfile(_made(f"./{name}", size=len(data)), io.BytesIO(data))
    assert unpack(path, folder) == len(held(folder))
    assert FILES.items() <= held(folder).items()


def _made(name: str, **values) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def test_what_desktops_add_is_left_out(tmp_path, folder):
    extra = {"__MACOSX/audio/._a.wav": b"x", "audio/.DS_Store": b"x", "audio/._a.wav": b"x"}
    assert unpack(zipped(tmp_path / "a.zip", {**FILES, **extra}), folder) == len(FILES)
    assert held(folder) == FILES


OUTSIDE = ["/etc/x", "../x", "a/../../x", "a\\..\\..\\x", "..", "a/..", "x\ny", "//x"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_are_refused(tmp_path, folder, kind, name):
    if kind == "zip":
        path = zipped(tmp_path / "a", {"good": b"", name: b"bad"})
    else:
        path = tarred(tmp_path / "a", [("good", b""), (name, b"bad")])
    with pytest.raises(ArchiveError, match="leads out of the archive"):
        unpack(path, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["a", "out"] or {p.name for p in tmp_path.iterdir()} == {"a", "out"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_nothing_but_plain_files_is_made(tmp_path, folder, kind):
    link = _made("audio", type=kind, linkname="/etc")
    with pytest.raises(ArchiveError, match="is a link"):
        unpack(tarred(tmp_path / "a", [link, ("audio/passwd", b"x")]), folder)
    with zipfile.ZipFile(tmp_path / "b", "w") as out:
        info = zipfile.ZipInfo("audio")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        out.writestr(info, "/etc")
    with pytest.raises(ArchiveError, match="is a link"):
        unpack(tmp_path / "b", folder)


def test_a_name_stands_once(tmp_path, folder):
    with pytest.raises(ArchiveError, match="stands twice"):
        unpack(tarred(tmp_path / "a", [("x", b"1"), ("x", b"2")]), folder)
    with pytest.raises(ArchiveError, match="stands twice, or is a file and a folder"):
        unpack(tarred(tmp_path / "b", [("y", b"1"), ("y/z", b"2")]), folder)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_are_refused_by_what_they_hold_not_by_what_they_say(tmp_path, folder, kind):
    """20 MB of nothing in some kB, with 1 MB allowed; a zip that lies about its sizes too."""
    nothing = bytes(20 << 20)
    if kind == "zip":
        path = zipped(tmp_path / "a", {"x": nothing})
    else:
        path = tarred(tmp_path / "a", [("x", nothing)], "w:gz")
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ArchiveError, match="holds more than"):
        unpack(path, folder, most_bytes=1 << 20)
    assert sum(len(data) for data in held(folder).values()) <= 2 << 20
    if kind == "zip":
        lying = path.read_bytes().replace(struct.pack("<I", len(nothing)), struct.pack("<I", 10))
        (tmp_path / "b").write_bytes(lying)
        with pytest.raises(ArchiveError):
            unpack(tmp_path / "b", folder, most_bytes=1 << 20)


def test_too_many_files(tmp_path, folder):
    path = zipped(tmp_path / "a", {f"f{n}": b"" for n in range(11)})
    with pytest.raises(ArchiveError, match="more than 10 files"):
        unpack(path, folder, most_files=10)


def test_a_header_is_not_read_into_memory_whole(tmp_path, folder):
    """A pax header that says it is large, and a zip's directory."""
    head = _made("x", type=tarfile.XHDTYPE, size=HEADER * 8).tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "a").write_bytes(gzip.compress(head + bytes(HEADER * 8)))
    with pytest.raises(ArchiveError, match="a header has more than"):
        unpack(tmp_path / "a", folder)
    whole = zipped(tmp_path / "b", {"x": b"1"}).read_bytes()
    at = whole.rindex(b"PK\x05\x06")
    directory = struct.unpack("<I", whole[at + 12 : at + 16])[0]
    (tmp_path / "c").write_bytes(whole[:at] + bytes(33 << 20) + whole[at : at + 12]
                                 + struct.pack("<I", directory + (33 << 20)) + whole[at + 16 :])  # fmt: skip
    with pytest.raises(ArchiveError):
        unpack(tmp_path / "c", folder)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04broken", b"\x1f\x8bnope", b"\x1f\x8b\x08\x00" + bytes(50),
                                     b"neither nor" * 100])  # fmt: skip
def test_what_is_no_archive_is_said(tmp_path, folder, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ArchiveError):
        unpack(tmp_path / "a", folder)
    assert held(folder) == {}


def test_a_damaged_archive_is_said(tmp_path, folder):
    data = os.urandom(100_000)
    for n, path in enumerate((zipped(tmp_path / "a", {"x": data}), tarred(tmp_path / "b", [("x", data)], "w:gz"))):
        whole = bytearray(path.read_bytes())
        whole[50_000] ^= 0xFF
        path.write_bytes(whole)
        (folder / str(n)).mkdir()
        with pytest.raises(ArchiveError):
            unpack(path, folder / str(n))
        path.write_bytes(whole[:60_000])
        (folder / f"{n} cut").mkdir()
        with pytest.raises(ArchiveError):
            unpack(path, folder / f"{n} cut")
