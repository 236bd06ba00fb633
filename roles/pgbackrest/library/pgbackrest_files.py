#!/usr/bin/python
"""Ansible module: have these files in a folder, in one go."""

from __future__ import annotations

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: pgbackrest_files
short_description: Have the given files in a folder
description:
  - Creates the folder (0755) and writes files that are missing or differ (0644, root). One task instead of one for each file, which
    takes as many round trips to the host.
options:
  dest:
    description: The folder.
    type: path
    required: true
  files:
    description: Contents by name.
    type: dict
    required: true
  remove_suffix:
    description: Other files whose name ends so are removed; none without it.
    type: str
    default: ""
author:
  - The pgchroma authors
"""

EXAMPLES = """
- name: Install the command's modules
  pgbackrest_files:
    dest: /usr/local/lib/pgchroma-backup/pgchroma_backup
    files: {"__init__.py": ""}
    remove_suffix: .py
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


def read(path: Path) -> str | None:
    """Return what a file holds, or None where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else None


def synchronise(
    folder: Path, files: dict[str, str], suffix: str, *, check: bool
) -> tuple[list[dict[str, str]], list[str]]:
    """Return the files written, as they were and are, and the names removed; with ``check`` what would be."""
    written = []
    for name, content in sorted(files.items()):
        before = read(folder / name)
        if before != content:
            written.append({"name": name, "before": before or "", "after": content})
    others = sorted(path.name for path in folder.glob(f"*{suffix}")) if suffix else []
    removed = [name for name in others if name not in files]
    if not check:
        os.makedirs(folder, mode=0o755, exist_ok=True)  # noqa: PTH103 - Path.mkdir gives its mode to the last part only
        for entry in written:
            write(folder / entry["name"], entry["after"])
        for name in removed:
            (folder / name).unlink()
    return written, removed


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "files": {"type": "dict", "required": True},
            "remove_suffix": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    folder, suffix = Path(module.params["dest"]), module.params["remove_suffix"]
    try:
        written, removed = synchronise(folder, module.params["files"], suffix, check=module.check_mode)
    except OSError as error:
        module.fail_json(msg=f"{folder} cannot be written: {error}")
    names = [entry["name"] for entry in written]
    headers = {name: f"{folder}/{name}" for name in names}
    diff = [
        {
            "before": entry["before"],
            "after": entry["after"],
            "before_header": headers[entry["name"]],
            "after_header": headers[entry["name"]],
        }
        for entry in written
    ]
    module.exit_json(changed=bool(written or removed), written=names, removed=removed, diff=diff)


if __name__ == "__main__":
    main()
