"""Folders as compressed archives, and the manifests by which two of them are compared."""

import contextlib
import hashlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeAlias, cast

import zstandard

from pgchroma.errors import ConfigurationError

_PIECE = 1 << 20

# path below the folder -> [size in bytes, SHA-256 in hex]
Manifest = dict[str, list[int | str]]


def sha256_of(file: IO[bytes], advance: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of what is left to read of a file, in hex.

    Args:
        advance: called with the number of bytes that were read since the last call.
    """
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
        if advance:
            advance(len(piece))
    return digest.hexdigest()


def manifest_of(folder: Path, advance: Callable[[int], None] | None = None) -> Manifest:
    """Return size and SHA-256 of every file in a folder; `advance` as of `sha256_of`."""
    found: Manifest = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = [path.stat().st_size, sha256_of(file, advance)]
    return found


def differences(wanted: Manifest, found: Manifest) -> list[str]:
    """Return in words how the files of a folder differ from a manifest."""
    told = [f"{name} is gone" for name in sorted(wanted.keys() - found.keys())]
    told += [f"{name} is new" for name in sorted(found.keys() - wanted.keys())]
    told += [
        f"{name} has other content"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
    return told


def pack(folder: Path, target: Path) -> None:
    """Write a folder into a compressed archive, under another name until it is whole.

    Raises:
        ConfigurationError: the archive cannot be written.
    """
    partial = target.with_name(f"partial-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
        with (
            partial.open("wb") as file,
            compressor.stream_writer(file, closefd=False) as packed,
            tarfile.open(fileobj=cast(IO[bytes], packed), mode="w|") as archive,
        ):
            archive.add(folder, arcname=folder.name)
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ConfigurationError(
            f"cannot write the copy {target}: {error.strerror}",
            hint="name a folder with room; nothing was removed",
        ) from error


# Path below the archive's root, size in bytes, and the file itself.
Member: TypeAlias = tuple[str, int, IO[bytes]]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Iterator[Member]]:
    """Open an archive; its files are read from front to back.

    Raises:
        zstandard.ZstdError: after the last file, where what was read is not what was written.
    """
    with (
        path.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file) as plain,
        tarfile.open(fileobj=cast(IO[bytes], plain), mode="r|") as archive,
    ):
        yield _members(archive, cast(IO[bytes], plain))


def _members(archive: tarfile.TarFile, plain: IO[bytes]) -> Iterator[Member]:
    for member in archive:
        content = archive.extractfile(member) if member.isfile() else None
        if content is not None:
            yield member.name.partition("/")[2], member.size, content
    # The checksum over all of it stands at the very end, behind what tar reads.
    while plain.read(_PIECE):
        pass


def packed_manifest(path: Path) -> Manifest:
    """Return size and SHA-256 of every file in an archive, read back from it."""
    with opened(path) as members:
        return {name: [size, sha256_of(content)] for name, size, content in members}
