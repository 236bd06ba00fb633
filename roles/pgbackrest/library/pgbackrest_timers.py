#!/usr/bin/python
"""Ansible module: have these timers run now and after every boot, in one go."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: pgbackrest_timers
short_description: Have timers run now and after every boot
description:
  - Enables and starts the timers that are not, and starts those anew whose unit was changed. One task instead of one for each timer,
    which takes as many round trips to the host.
options:
  names:
    description: The timers' units.
    type: list
    elements: str
    required: true
  changed_units:
    description: Units whose file was written by this run; a timer of that name is started anew.
    type: list
    elements: str
    default: []
author:
  - The pgchroma authors
"""

EXAMPLES = """
- name: Run the timers
  pgbackrest_timers:
    names: [pgchroma-backup-full.timer]
"""

RETURN = """
enabled:
  description: Timers that were enabled or started.
  type: list
  elements: str
  returned: always
restarted:
  description: Timers that were started anew.
  type: list
  elements: str
  returned: always
"""


def in_service(text: str) -> set[str]:
    """Return the units that are active and enabled, from what ``systemctl show`` prints of Id, ActiveState and UnitFileState."""
    found = set()
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("ActiveState") == "active" and values.get("UnitFileState") == "enabled":
            found.add(values["Id"])
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "changed_units": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    names = module.params["names"]

    def systemctl(*words: str) -> str:
        status, output, error = module.run_command(["systemctl", *words])
        if status:
            module.fail_json(msg=f"systemctl {words[0]} failed: {(error or output).strip()}")
        return str(output)

    enabled: list[str] = []
    restarted: list[str] = []
    if names:
        running = in_service(systemctl("show", "--property=Id,ActiveState,UnitFileState", *names))
        enabled = [name for name in names if name not in running]
        restarted = [name for name in names if name in running and name in module.params["changed_units"]]
        for words, units in ((("enable", "--now"), enabled), (("restart",), restarted)):
            if units and not module.check_mode:
                systemctl(*words, *units)
    module.exit_json(changed=bool(enabled or restarted), enabled=enabled, restarted=restarted)


if __name__ == "__main__":
    main()
