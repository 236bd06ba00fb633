#!/usr/bin/python
"""Ansible module: check a host that runs PostgreSQL, pgchroma or both, in one pass."""

from __future__ import annotations

import platform

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.verify_postgresql import check_postgresql
from ansible.module_utils.verify_report import counts, table
from ansible.module_utils.verify_server import check_database, check_release, check_server
from ansible.module_utils.verify_system import check_exposure, check_files, check_service, check_sockets

DOCUMENTATION = """
module: verify_host
short_description: Check units, sockets, PostgreSQL and the pgchroma server of a host
description:
  - Changes nothing on the host. The round trip writes to a collection of its own through the server and deletes it; under C(--check)
    it is skipped.
  - Never fails by itself; C(failed_checks) tells what did.
options:
  services:
    description: Units that must be active and enabled.
    type: list
    elements: str
    default: []
  sockets_expected:
    description: Sockets that must listen (name, port, addresses; no addresses means any).
    type: list
    elements: dict
    default: []
  sockets_other:
    description: Sockets that may listen.
    type: list
    elements: dict
    default: []
  exposures:
    description: The most exposure of each unit, by its name.
    type: dict
    default: {}
  files:
    description: Files and folders with path, owner (user:group) and the most that their mode may be.
    type: list
    elements: dict
    default: []
  postgresql:
    description: What is expected of PostgreSQL.
    type: dict
    required: true
  server:
    description: What is expected of the server.
    type: dict
    required: true
author:
  - The pgchroma authors
"""

EXAMPLES = """
- name: Check the server only
  verify_host:
    services: [pgchroma.service]
    postgresql: {enabled: false}
    server: {url: "http://127.0.0.1:8000", round_trip: true}
"""

RETURN = """
checks:
  description: Each check with id, severity (critical, warning), status (ok, warn, fail, skipped), detail and hint.
  type: list
  elements: dict
  returned: always
counts:
  description: How many checks came to each status.
  type: dict
  returned: always
failed_checks:
  description: The critical checks that do not hold.
  type: list
  elements: dict
  returned: always
table:
  description: All checks for a person to read.
  type: str
  returned: always
"""

ENTRY = {
    "name": {"type": "str"},
    "port": {"type": "int"},
    "addresses": {"type": "list", "elements": "str", "default": []},
}


def argument_spec() -> dict[str, object]:
    """Return the module's options."""
    return {
        "services": {"type": "list", "elements": "str", "default": []},
        "sockets_expected": {"type": "list", "elements": "dict", "options": ENTRY, "default": []},
        "sockets_other": {"type": "list", "elements": "dict", "options": ENTRY, "default": []},
        "exposures": {"type": "dict", "default": {}},
        "files": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {"path": {"type": "path"}, "owner": {"type": "str"}, "mode": {"type": "str"}},
        },
        "postgresql": {
            "type": "dict",
            "required": True,
            "options": {
                "enabled": {"type": "bool", "default": True},
                "port": {"type": "int", "default": 5432},
                "version": {"type": "int", "default": 17},
                "database": {"type": "str", "default": "pgchroma"},
                "settings": {"type": "dict", "default": {}},
                "superusers": {"type": "list", "elements": "str", "default": ["postgres"]},
                "pgvector_minimum": {"type": "str", "default": "0.8.4"},
                "pgvector_accepted": {"type": "str", "default": ""},
            },
        },
        "server": {
            "type": "dict",
            "required": True,
            "options": {
                "enabled": {"type": "bool", "default": True},
                "url": {"type": "str", "default": "http://127.0.0.1:8000"},
                "ca_file": {"type": "path", "default": ""},
                "token_file": {"type": "str", "default": ""},
                "round_trip": {"type": "bool", "default": True},
                "install_dir": {"type": "path", "default": "/opt/pgchroma"},
                "unit": {"type": "str", "default": "pgchroma.service"},
            },
        },
    }


def main() -> None:
    """Answer Ansible."""
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    given = module.params
    server = given["server"]
    checks = [check_service(unit) for unit in given["services"]]
    checks += check_sockets(given["sockets_expected"], given["sockets_other"])
    checks += check_postgresql(given["postgresql"])
    if server["enabled"]:
        checks += check_release(server["install_dir"], server["unit"])
        write = server["round_trip"] and not module.check_mode
        reason = "check mode writes nothing" if module.check_mode else "verify_round_trip is false"
        checks += check_server(
            server["install_dir"], server["url"], server["ca_file"], server["token_file"], write, reason
        )
        checks += check_database(server["install_dir"], given["postgresql"]["enabled"])
    checks += [check_exposure(unit, float(most)) for unit, most in given["exposures"].items()]
    checks.append(check_files(given["files"]))
    module.exit_json(
        changed=False,
        checks=checks,
        counts=counts(checks),
        failed_checks=[check for check in checks if check["status"] == "fail"],
        table=table(platform.node(), checks),
    )


if __name__ == "__main__":
    main()
