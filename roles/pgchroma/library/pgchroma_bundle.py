#!/usr/bin/python
"""Ansible module: make, on the controller, the one file from which a host installs a release without a package index."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: pgchroma_bundle
short_description: Build the release bundle of a checkout for one Python version and architecture
description:
  - Names the release of a checkout by its version and a hash of what goes into it, and, with I(state=built), builds the bundle
    C(<cache_dir>/bundles/<release>-<python tag>-<architecture>.tar).
  - The bundle holds C(wheels/), C(requirements.txt) (the locked dependencies with their hashes), C(release.txt) (pgchroma itself,
    with its hash) and C(manifest.json). A host installs it with C(pip --no-index --require-hashes).
  - With I(state=dependencies), builds a bundle of nothing but the locked wheels of I(requirements), named after that file.
  - Runs on the controller. Downloads are kept in I(cache_dir), so a second host or a second release downloads nothing again.
options:
  state:
    description:
      - C(named) changes nothing and returns the name of the release; C(built) makes sure that the bundle exists; C(dependencies)
        makes sure that a bundle of locked wheels alone exists.
    type: str
    choices: [named, built, dependencies]
    default: named
  requirements:
    description: The locked requirements file, below requirements/ of the checkout, for I(state=dependencies).
    type: str
  checkout_dir:
    description: The checkout with pyproject.toml, src/pgchroma and requirements/runtime.txt.
    type: path
    required: true
  cache_dir:
    description: Folder on the controller for wheels and bundles.
    type: path
    required: true
  build_python:
    description: Interpreter on the controller that has pip, setuptools and wheel.
    type: path
    required: true
  python_version:
    description: Python version of the host, such as C(3.13). Needed unless I(state=named).
    type: str
  architecture:
    description: Architecture of the host as C(uname -m) prints it. Needed unless I(state=named).
    type: str
  glibc_version:
    description: glibc version of the host, such as C(2.41); wheels for it and for older ones are taken. Needed unless I(state=named).
    type: str
author:
  - The pgchroma authors
"""

EXAMPLES = """
- name: Build the bundle for this host
  pgchroma_bundle:
    state: built
    checkout_dir: /root/pgchroma
    cache_dir: /var/cache/pgchroma
    build_python: /root/pgchroma/.venv/bin/python
    python_version: "3.13"
    architecture: x86_64
    glibc_version: "2.41"
  delegate_to: localhost
"""

RETURN = """
release:
  description: Name of the release, C(<version>+<first 8 digits of the content hash>).
  type: str
  returned: always
version:
  description: Version of the package.
  type: str
  returned: always
path:
  description: Path of the bundle on the controller.
  type: str
  returned: when state is built or dependencies
"""

# pip accepts wheels of every listed platform; these names are older spellings of manylinux_2_17, _2_12 and _2_5.
LEGACY_MANYLINUX = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
OLDEST_GLIBC_MINOR = 5


class BundleError(Exception):
    """What went wrong, with the remedy."""


def release_inputs(checkout: Path) -> list[Path]:
    """Return the files that make a release what it is, sorted; documentation is not among them."""
    package = checkout / "src" / "pgchroma"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    if not files:
        raise BundleError(
            f"{package} holds no files. pgchroma_checkout_dir must be a checkout of the project."
        )
    files += [checkout / "pyproject.toml", checkout / "requirements" / "runtime.txt"]
    for path in files[-2:]:
        if not path.is_file():
            raise BundleError(
                f"{path} does not exist. pgchroma_checkout_dir must be a checkout of the project."
            )
    return sorted(files)


def package_version(checkout: Path) -> str:
    """Return the version that src/pgchroma/__init__.py declares."""
    path = checkout / "src" / "pgchroma" / "__init__.py"
    found = re.search(r'^__version__ = "([^"]+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise BundleError(f'{path} has no line __version__ = "..."')
    return found.group(1)


def release_name(checkout: Path) -> str:
    """Return ``<version>+<hash>``, where the hash is over names and contents of everything that goes into the release."""
    digest = hashlib.sha256()
    for path in release_inputs(checkout):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(checkout)}\0{len(content)}\0".encode())
        digest.update(content)
    return f"{package_version(checkout)}+{digest.hexdigest()[:8]}"


def read_lock(checkout: Path, name: str) -> str:
    """Return the text of a locked requirements file."""
    path = checkout / "requirements" / name
    if not path.is_file():
        raise BundleError(f"{path} does not exist. Name a locked file below requirements/ of the checkout.")
    return path.read_text(encoding="utf-8")


def lock_name(checkout: Path, name: str) -> str:
    """Return ``<name>+<hash>`` of a locked requirements file."""
    digest = hashlib.sha256(read_lock(checkout, name).encode()).hexdigest()
    return f"{name.removesuffix('.txt')}+{digest[:8]}"


def platforms(architecture: str, glibc_version: str) -> list[str]:
    """Return the wheel platforms that a host of this architecture and glibc can load, newest first."""
    found = re.fullmatch(r"2\.(\d+)", glibc_version)
    if found is None:
        raise BundleError(
            f"glibc version {glibc_version!r} is not of the form 2.N: only hosts with glibc are supported."
        )
    names = []
    for minor in range(int(found.group(1)), OLDEST_GLIBC_MINOR - 1, -1):
        names.append(f"manylinux_2_{minor}_{architecture}")
        if minor in LEGACY_MANYLINUX:
            names.append(f"{LEGACY_MANYLINUX[minor]}_{architecture}")
    return [*names, f"linux_{architecture}"]


def requirements_for(locked: str, python_version: str, architecture: str) -> str:
    """Return the entries of a locked requirements file whose markers hold on the host, without the markers.

    pip judges markers by the interpreter that runs it, which on a controller is not the host's.
    """
    from packaging.markers import Marker  # present wherever Ansible is; hosts do not need it

    environment = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": architecture,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python_version}.0",
        "python_version": python_version,
        "sys_platform": "linux",
    }
    kept = []
    for entry in re.split(r"\n(?=\S)", locked.strip()):
        first, _, hashes = entry.partition("\n")
        requirement, _, marker = first.removesuffix("\\").partition(";")
        if not marker or Marker(marker.strip()).evaluate(environment):
            kept.append(f"{requirement.strip()} \\\n{hashes}")
    return "\n".join(kept) + "\n"


def run(command: list[str], what: str, remedy: str, **environment: str) -> None:
    """Run a command; raise what it was for, its last lines and the remedy if it fails."""
    # The variables of the caller stay: a proxy or an index of one's own is configured there.
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)  # noqa: S603
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise BundleError(f"{what} failed (exit status {done.returncode}): {tail}\n{remedy}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock: several hosts of one play build at the same time."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def complete_or_absent(target: Path, fill: Callable[[Path], None]) -> bool:
    """Let ``fill`` make the folder ``target`` under another name and rename it when done; return whether it was missing."""
    if target.is_dir():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        fill(folder)
        folder.rename(target)
    return True


class Builder:
    """Builds the bundle of one checkout for one kind of host."""

    def __init__(
        self,
        checkout: Path,
        cache: Path,
        build_python: str,
        python_version: str,
        architecture: str,
        glibc_version: str,
        lock: str = "",
    ) -> None:
        self.checkout = checkout
        self.cache = cache
        self.pip = [
            build_python,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--cache-dir",
            str(cache / "pip"),
        ]
        self.python_version = python_version
        self.tag = f"cp{python_version.replace('.', '')}"
        self.architecture = architecture
        self.platforms = platforms(architecture, glibc_version)
        self.release = lock_name(checkout, lock) if lock else release_name(checkout)
        self.own_package = not lock
        text = read_lock(checkout, lock or "runtime.txt")
        self.requirements = requirements_for(text, python_version, architecture)

    def fill_dependencies(self, folder: Path) -> None:
        """Download the locked wheels for the host's Python and platform."""
        listing = folder / "requirements.txt"
        listing.write_text(self.requirements, encoding="utf-8")
        command = [*self.pip, "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
        command += ["--python-version", self.python_version, "--implementation", "cp"]
        for abi in (self.tag, "abi3", "none"):
            command += ["--abi", abi]
        for platform in self.platforms:
            command += ["--platform", platform]
        command += ["--dest", str(folder), "--requirement", str(listing)]
        remedy = (
            "The controller needs its package index, or the wheels in its cache already "
            f"({self.cache}); the locked versions must have wheels for Python {self.python_version} on {self.architecture}."
        )
        run(command, "Downloading the locked wheels", remedy)

    def fill_package(self, folder: Path) -> None:
        """Build pgchroma's own wheel from a copy, so that the checkout stays as it is."""
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="source-") as scratch:
            source = Path(scratch)
            for name in ("pyproject.toml", "README.md"):
                shutil.copy2(self.checkout / name, source / name)
            shutil.copytree(
                self.checkout / "src" / "pgchroma",
                source / "src" / "pgchroma",
                ignore=shutil.ignore_patterns("__pycache__"),
            )
            command = [*self.pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
            remedy = (
                "pgchroma_build_python must be a Python with pip, setuptools and wheel, such as the one of `make venv`; "
                f"it is {self.pip[0]}."
            )
            # A fixed time in the archive: the same sources give the same wheel.
            run(
                [*command, "--wheel-dir", str(folder), str(source)],
                "Building pgchroma's wheel",
                remedy,
                SOURCE_DATE_EPOCH="315532800",
            )

    def build(self) -> tuple[Path, bool]:
        """Return the path of the bundle and whether it had to be made."""
        bundle = self.cache / "bundles" / f"{self.release}-{self.tag}-{self.architecture}.tar"
        bundle.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.cache / "bundles" / ".lock"):
            if bundle.exists():
                return bundle, False
            identity = hashlib.sha256("\n".join([self.requirements, *self.platforms]).encode()).hexdigest()[
                :16
            ]
            dependencies = self.cache / "wheels" / f"{identity}-{self.tag}-{self.architecture}"
            complete_or_absent(dependencies, self.fill_dependencies)
            wheels = sorted(dependencies.glob("*.whl"))
            if self.own_package:
                package = self.cache / "wheels" / self.release
                complete_or_absent(package, self.fill_package)
                wheels += package.glob("*.whl")
            self.pack(bundle, wheels)
        return bundle, True

    def pack(self, bundle: Path, wheels: list[Path]) -> None:
        """Write the bundle under another name and rename it when done; pgchroma's own wheel, if it is there, is the last."""
        version = self.release.partition("+")[0]
        manifest = {
            "release": self.release,
            "version": version,
            "python": self.python_version,
            "architecture": self.architecture,
            "wheels": {path.name: sha256(path) for path in wheels},
        }
        texts = {
            "requirements.txt": self.requirements,
            "manifest.json": json.dumps(manifest, indent=2) + "\n",
        }
        if self.own_package:
            texts["release.txt"] = f"pgchroma=={version} --hash=sha256:{sha256(wheels[-1])}\n"
        with tempfile.TemporaryDirectory(dir=bundle.parent, prefix=".packing-") as scratch:
            draft = Path(scratch) / bundle.name
            with tarfile.open(draft, "w") as archive:
                for path in wheels:
                    archive.add(path, f"wheels/{path.name}")
                for name, text in texts.items():
                    written = Path(scratch) / name
                    written.write_text(text, encoding="utf-8")
                    archive.add(written, name)
            draft.rename(bundle)


def main() -> None:
    """Answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["named", "built", "dependencies"], "default": "named"},
            "checkout_dir": {"type": "path", "required": True},
            "cache_dir": {"type": "path", "required": True},
            "build_python": {"type": "path", "required": True},
            "python_version": {"type": "str"},
            "architecture": {"type": "str"},
            "glibc_version": {"type": "str"},
            "requirements": {"type": "str"},
        },
        required_if=[
            ("state", "built", ("python_version", "architecture", "glibc_version")),
            ("state", "dependencies", ("requirements", "python_version", "architecture", "glibc_version")),
        ],
        supports_check_mode=True,
    )
    given = module.params
    checkout = Path(given["checkout_dir"]).resolve()
    try:
        lock = given["requirements"] if given["state"] == "dependencies" else ""
        release = lock_name(checkout, lock) if lock else release_name(checkout)
        result = {"release": release, "version": package_version(checkout)}
        if given["state"] == "named" or module.check_mode:
            module.exit_json(changed=given["state"] != "named", **result)
        builder = Builder(
            checkout,
            Path(given["cache_dir"]),
            given["build_python"],
            given["python_version"],
            given["architecture"],
            given["glibc_version"],
            lock,
        )
        path, changed = builder.build()
    except BundleError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error}. The user that runs Ansible must be able to write {given['cache_dir']}."
        )
    module.exit_json(changed=changed, path=str(path), **result)


if __name__ == "__main__":
    main()
