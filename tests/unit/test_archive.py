"""Archives of folders: damage anywhere in one is noticed."""

import tarfile
from pathlib import Path

import pytest
import zstandard

from pgchroma.migrate import archive


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    """In what tar does not look at, too, such as the owner of a file or the padding at the end."""
    folder, packed = tmp_path / "folder", tmp_path / "folder.tar.zst"
    folder.mkdir()
    (folder / "file").write_bytes(b"content of the file")
    archive.pack(folder, packed)
    data = packed.read_bytes()
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    wanted = archive.packed_manifest(packed)
    noticed = 0
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        packed.write_bytes(damaged)
        try:
            found = archive.packed_manifest(packed)
        except (tarfile.TarError, zstandard.ZstdError, EOFError, OSError):
            noticed += 1
            continue
        # Some bits say how much memory to use, or that nothing follows.
        assert found == wanted
        assert zstandard.ZstdDecompressor().decompressobj().decompress(bytes(damaged)) == plain
    assert noticed > 0.9 * len(data)


def test_a_copy_that_breaks_off_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    archive.pack(tmp_path / "folder", tmp_path / "folder.tar.zst")
    data = (tmp_path / "folder.tar.zst").read_bytes()
    (tmp_path / "folder.tar.zst").write_bytes(data[: len(data) // 2])
    with pytest.raises((tarfile.TarError, zstandard.ZstdError, EOFError)):
        archive.packed_manifest(tmp_path / "folder.tar.zst")
