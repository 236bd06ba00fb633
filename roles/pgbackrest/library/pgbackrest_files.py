#!/usr/bin/python
"""Ansible module: have exactly these files in a folder, in one go."""

from __future__ import annotations

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: pgbackrest_files
short_description: Have exactly the given files in a folder
description:
  - Creates the folder (0755), writes files that are missing or differ (0644, root) and removes others that end in .py. One task instead
    of one for each file, which takes as many round trips to the host.
options:
  dest:
    description: The folder.
    type: path
    required: true
  files:
    description: Contents by name.
    type: dict
    required: true
author:
  - The pgchroma authors
"""

EXAMPLES = """
- name: Install the command's modules
  pgbackrest_files:
    dest: /usr/local/lib/pgchroma-backup/pgchroma_backup
    files: {"__init__.py": ""}
"""

RETURN = """
written:
  description: Names of the files that were written.
  type: list
  elements: str
  returned: always
removed:
  description: Names of the files that were removed.
  type: list
  elements: str
  returned: always
"""


def write(path: Path, content: str) -> None:
    """Write a file under another name and rename it: whoever runs the command meanwhile sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(content, encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(path)


def synchronise(folder: Path, files: dict[str, str], *, check: bool) -> tuple[list[str], list[str]]:
    """Return the names written and removed; with ``check`` those that would be."""
    present = {path.name: path for path in folder.glob("*.py")}
    written = [
        name
        for name, content in sorted(files.items())
        if name not in present or present[name].read_text(encoding="utf-8") != content
    ]
    removed = sorted(set(present) - set(files))
    if not check:
        os.makedirs(folder, mode=0o755, exist_ok=True)  # noqa: PTH103 - Path.mkdir gives its mode to the last part only
        for name in written:
            write(folder / name, files[name])
        for name in removed:
            present[name].unlink()
    return written, removed


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "files": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    folder = Path(module.params["dest"])
    try:
        written, removed = synchronise(folder, module.params["files"], check=module.check_mode)
    except OSError as error:
        module.fail_json(msg=f"{folder} cannot be written: {error}")
    module.exit_json(changed=bool(written or removed), written=written, removed=removed)


if __name__ == "__main__":
    main()
