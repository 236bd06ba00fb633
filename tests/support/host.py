"""Calling the server of a host as an application on that host would, and reading an inventory as Ansible does."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testinfra.host import Host

SERVER = "http://127.0.0.1:8000"
BASE = f"{SERVER}/api/v2"
# Kept by the role for playbooks/verify.yml; may write to the default database.
TOKEN_FILE = "/etc/pgchroma/credentials/tokens/verify"
COLLECTIONS = "/tenants/default_tenant/databases/default_database/collections"

Api = Callable[..., tuple[int, Any]]

_CALL = """
import json, sys, urllib.error, urllib.request
method, url, body, token_file = sys.argv[1:]
headers = {"Content-Type": "application/json"}
if token_file:
    headers["Authorization"] = "Bearer " + open(token_file).read().strip()
request = urllib.request.Request(url, body.encode() or None, headers, method=method)
try:
    with urllib.request.urlopen(request, timeout=10) as answer:
        status, text = answer.status, answer.read().decode()
except urllib.error.HTTPError as error:
    status, text = error.code, error.read().decode()
except OSError as error:
    status, text = 0, str(error)
print(json.dumps([status, text]))
"""
_VARIABLES = "q('ansible.builtin.varnames', '^ansible_(host|port|user|connection|become|ssh_.*)$')"


def api_of(host: Host) -> Api:
    """Return a function that calls the server: ``api("GET", "/heartbeat")`` gives status (0: no answer) and decoded body.

    It sends the host's own token unless ``token_file=""`` or another file is given.
    """

    def call(
        method: str, path: str, body: object = None, *, base: str = BASE, token_file: str = TOKEN_FILE
    ) -> tuple[int, Any]:
        text = "" if body is None else json.dumps(body)
        words = ["/usr/bin/python3", "-c", _CALL, method, base + path, text, token_file]
        status, answer = json.loads(host.check_output(shlex.join(words)))
        try:
            return int(status), json.loads(answer)
        except ValueError:
            return int(status), answer

    return call


def rendered_inventory(inventory: str) -> dict[str, Any]:
    """Return hosts and groups of an inventory with the connection variables evaluated by Ansible itself."""
    tools = Path(sys.executable).parent
    quiet = {
        **os.environ,
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
    }
    message = f"msg={{{{ dict({_VARIABLES} | zip(q('ansible.builtin.vars', *{_VARIABLES}))) }}}}"
    shown = subprocess.run(
        [tools / "ansible", "--inventory", inventory, "all", "-m", "ansible.builtin.debug", "-a", message],
        env=quiet,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = subprocess.run(
        [tools / "ansible-inventory", "--inventory", inventory, "--list"],
        capture_output=True,
        text=True,
        check=True,
    )
    results = json.loads(shown.stdout)["plays"][0]["tasks"][0]["hosts"]
    groups = {
        name: {"hosts": dict.fromkeys(group["hosts"])}
        for name, group in json.loads(listed.stdout).items()
        if name != "_meta" and "hosts" in group
    }
    return {"all": {"hosts": {name: result["msg"] for name, result in results.items()}}, **groups}
