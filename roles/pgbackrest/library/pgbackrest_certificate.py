#!/usr/bin/python
"""Ansible module: a private certificate authority in a folder, and one host's key and certificate by it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: pgbackrest_certificate
short_description: Have a private certificate authority, and a host's certificate by it
description:
  - Makes the authority once (authority.key and authority.crt, ten years). Makes NAME.key and NAME.crt (five years) where they are missing,
    are by another authority, name other names, or end within 90 days. Keys are 0600. Needs the program openssl. Runs on the controller.
options:
  directory:
    description: The folder, made 0700.
    type: path
    required: true
  name:
    description: Common name, by which a server knows its clients.
    type: str
    required: true
  names:
    description: Names or addresses by which clients know the server.
    type: list
    elements: str
    required: true
author:
  - The pgchroma authors
"""

EXAMPLES = """
- name: Have a certificate for this host
  pgbackrest_certificate:
    directory: ~/.config/pgchroma/secrets/main-tls
    name: db1
    names: [db1, 192.0.2.7]
  delegate_to: localhost
"""

RETURN = """
made:
  description: Names of the certificates that were made, or would be.
  type: list
  elements: str
  returned: always
"""

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
AUTHORITY_DAYS, HOST_DAYS, RENEW_DAYS = 3650, 1825, 90


class OpensslError(Exception):
    """openssl failed, or is not there."""


def openssl(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run openssl and return how it ended; OpensslError when there is no such program."""
    try:
        return subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError as error:
        raise OpensslError("there is no program openssl on the controller; install it") from error


def must(*words: str | Path) -> None:
    """Run openssl; OpensslError with what it says when it fails."""
    done = openssl(*words)
    if done.returncode != 0:
        raise OpensslError(f"openssl {words[0]}: {done.stderr.strip()}")


def subject_names(names: list[str]) -> str:
    """Return the extension with the names. pgBackRest compares DNS entries only, addresses too."""
    return "subjectAltName=" + ",".join(f"DNS:{name}" for name in names)


def fits(folder: Path, name: str, names: list[str]) -> bool:
    """Whether the host's certificate is there, by this authority, for these names, and lasts."""
    certificate, authority = folder / f"{name}.crt", folder / "authority.crt"
    if not certificate.exists() or not (folder / f"{name}.key").exists():
        return False
    if openssl("verify", "-CAfile", authority, certificate).returncode != 0:
        return False
    if openssl("x509", "-in", certificate, "-noout", "-checkend", str(RENEW_DAYS * 86400)).returncode != 0:
        return False
    shown = openssl("x509", "-in", certificate, "-noout", "-ext", "subjectAltName").stdout.splitlines()[1:]
    return "".join(shown).replace(" ", "") == subject_names(names).partition("=")[2]


def make_authority(folder: Path, made: Path) -> None:
    """Make the authority in ``made`` and move it to its place."""
    must(
        *("req", "-x509", *KEY, "-days", str(AUTHORITY_DAYS), "-subj", f"/CN=pgchroma {folder.name}"),
        *("-keyout", made / "key", "-out", made / "crt"),
    )
    keep(made / "key", folder / "authority.key")
    keep(made / "crt", folder / "authority.crt")


def make_host(folder: Path, made: Path, name: str, names: list[str]) -> None:
    """Make a host's key and certificate in ``made`` and move them to their place."""
    (made / "ext").write_text(subject_names(names) + "\n", encoding="utf-8")
    must("req", *KEY, "-subj", f"/CN={name}", "-keyout", made / "key", "-out", made / "csr")
    must(
        *("x509", "-req", "-in", made / "csr", "-days", str(HOST_DAYS), "-extfile", made / "ext"),
        *("-CA", folder / "authority.crt", "-CAkey", folder / "authority.key", "-CAcreateserial"),
        *("-CAserial", made / "serial", "-out", made / "crt"),
    )
    keep(made / "key", folder / f"{name}.key")
    keep(made / "crt", folder / f"{name}.crt")


def keep(source: Path, target: Path) -> None:
    """Move a file to its place in one step, readable for its owner only."""
    source.chmod(0o600)
    source.replace(target)


def provide(folder: Path, name: str, names: list[str], *, check: bool) -> list[str]:
    """Make what is missing and return the names of what was made; with ``check`` of what would be."""
    wanted = (
        [] if (folder / "authority.crt").exists() and (folder / "authority.key").exists() else ["authority"]
    )
    if wanted or not fits(folder, name, names):
        wanted.append(name)
    if wanted and not check:
        os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103 - Path.mkdir gives its mode to the last part only
        with tempfile.TemporaryDirectory(dir=folder) as made:
            if "authority" in wanted:
                make_authority(folder, Path(made))
            make_host(folder, Path(made), name, names)
    return wanted


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    folder, name = Path(module.params["directory"]), module.params["name"]
    try:
        made = provide(folder, name, module.params["names"], check=module.check_mode)
    except (OpensslError, OSError) as error:
        module.fail_json(msg=f"no certificate for {name}: {error}")
    module.exit_json(changed=bool(made), made=made)


if __name__ == "__main__":
    main()
