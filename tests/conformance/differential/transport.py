"""Content types, sizes, and everything else between a socket and a handler; and reset, which comes last."""

from conformance.differential import deviations as because
from conformance.differential.model import Scenario, Step

_JSON = {"Content-Type": "application/json"}


def _tenant(name: str, headers: dict[str, str]) -> Step:
    return Step("POST", "/api/v2/tenants", {"name": f"transport-{name}"}, headers=headers)


TRANSPORT = Scenario(
    "transport",
    [
        _tenant("none", {}),
        _tenant("json", _JSON),
        _tenant("charset", {"Content-Type": "application/json; charset=utf-8"}),
        _tenant("upper", {"Content-Type": "APPLICATION/JSON"}),
        _tenant("suffix", {"Content-Type": "application/vnd.api+json"}),
        _tenant("text", {"Content-Type": "text/plain"}),
        _tenant("form", {"Content-Type": "application/x-www-form-urlencoded"}),
        _tenant("bytes", {"Content-Type": "application/octet-stream"}),
        _tenant("empty", {"Content-Type": ""}),
        _tenant("jsonx", {"Content-Type": "application/jsonx"}),
        _tenant("token", {**_JSON, "X-Chroma-Token": "whatever"}),
        Step("POST", "/api/v2/tenants", b'  \n{ "name" : "spaced" }\n '),
        Step("POST", "/api/v2/tenants", b'\xef\xbb\xbf{"name":"bom-bom"}'),
        Step("POST", "/api/v2/tenants", b'{"name":"deep","x":' + b"[" * 100 + b"]" * 100 + b"}"),
        Step("POST", "/api/v2/tenants", b'{"name":"deeper","x":' + b"[" * 200 + b"]" * 200 + b"}"),
        Step(
            "POST",
            "/api/v2/tenants",
            b'{"name":"deepest","x":' + b"[" * 100000 + b"]" * 100000 + b"}",
            differs=because.DEPTH,
            ours=400,
        ),
        Step("GET", "{cs}", {"ignored": "body"}),
        Step("DELETE", "{cs}/nope", {"ignored": "body"}),
        Step("GET", "{cs}/made/../made"),
        Step("GET", "{cs}/%6dade", only=("name",)),
        Step("GET", "/api/v2/tenants/{tenant}/databases/%6dain/collections/made", only=("name",)),
        Step("GET", "{cs}/a%2Fb"),
        Step("GET", "{cs}/a%00b"),
        Step("GET", "{cs}/%F0%9F%A6%8A"),
        Step("GET", "{cs}/%E2%28%A1"),
        Step("GET", "{cs}/" + "x" * 4000),
        Step("GET", "{cs}/by-id/{c_id}", only=("name",)),
        Step("POST", "{c}/add", {"ids": ["x"], "embeddings": [[1]], "documents": ["d" * 41_000_000]}),
        Step("GET", "{c}/count"),
        Step(
            "POST",
            "{c}/add",
            {"ids": [f"{n}" for n in range(6000)], "embeddings": [[n] for n in range(6000)]},
        ),
        Step("GET", "{c}/count"),
        Step("POST", "/api/v2/reset", {}),
        Step("GET", "{cs}"),
        Step("GET", "/api/v2/tenants/{tenant}"),
        Step("GET", "/api/v2/tenants/default_tenant"),
        Step("GET", "/api/v2/tenants/default_tenant/databases/default_database"),
        Step("GET", "/api/v2/tenants/default_tenant/databases/default_database/collections_count"),
    ],
    setup=[Step("POST", "{cs}", {"name": "made"}, save="c")],
)
