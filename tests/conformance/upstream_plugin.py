"""Makes chromadb's own tests run over HTTP against the server that the environment names, quickly and alike each time.

It is loaded into the pytest process that runs them; nothing of chromadb's is changed on disk. Its conftest brings the mode in which
clients talk to a server that runs already.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import hypothesis
import numpy as np
import pytest
from chromadb.api.types import DefaultEmbeddingFunction, Documents, Embeddings

# Where the outcome is written, for `conformance.upstream`.
REPORT_VARIABLE = "PGCHROMA_CONFORMANCE_REPORT"
# Set to run what chromadb marks as possible on its distributed server only, too.
BEYOND_VARIABLE = "PGCHROMA_CONFORMANCE_BEYOND"
PROFILE = "conformance"
EXAMPLES = 8
STEPS = 12
# That of the model which the hash stands for.
DIMENSION = 384
# chromadb's names for its clients of a running server; whatever does without them tests chromadb alone.
CLIENTS = {"integration", "async_integration"}
# Leaves the client it is given aside and runs chromadb's old embedded mode, which needs the package hnswlib.
EMBEDDED = {"test_persist_index_loading_params"}


def _hashed(self: DefaultEmbeddingFunction, input: Documents) -> Embeddings:  # noqa: A002 - chromadb checks both names
    """Embed texts without the model, which would have to be downloaded: the same text, the same unit vector."""
    vectors = []
    for text in input:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        vector = np.random.default_rng(seed).standard_normal(DIMENSION, dtype=np.float32)
        vectors.append(vector / np.linalg.norm(vector))
    return vectors


def _register_profile() -> None:
    hypothesis.settings.register_profile(
        PROFILE,
        hypothesis.settings.get_profile("base"),
        derandomize=True,
        database=None,
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        verbosity=hypothesis.Verbosity.normal,
    )
    hypothesis.settings.load_profile(PROFILE)


def _settings(*_arguments: Any, **_options: Any) -> hypothesis.settings:
    return hypothesis.settings.get_profile(PROFILE)


def _lift_marks(conftest: Any) -> None:
    """Let the test modules, which are imported later, leave nothing out for want of the distributed server."""
    conftest.is_spann_disabled_mode = False

    def no_mark() -> Callable[[Any], Any]:
        return lambda function: function

    conftest.skip_if_not_cluster = no_mark


def _do_not_wait(items: list[pytest.Item]) -> None:
    """Leave out the minutes in which the tests wait for a cache of the distributed server, which is none here."""
    for item in items:
        module = cast("pytest.Function", item).module
        if module.__name__.endswith("test_indexing_status"):
            vars(module)["sleep"] = lambda _seconds: None


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Adapt chromadb's conftest before pytest registers its hooks: pytest takes the module that is imported already."""
    from chromadb.test import conftest

    # It renames tests through an attribute that pytest 9 no longer has.
    del conftest.pytest_itemcollected
    _register_profile()
    if os.environ.get(BEYOND_VARIABLE):
        _lift_marks(conftest)
    # By this the test modules ask for more examples and steps than the profile has.
    conftest.override_hypothesis_profile = _settings
    DefaultEmbeddingFunction.__call__ = _hashed  # type: ignore[method-assign]


def _asks_the_server(item: pytest.Item) -> bool:
    function = cast("pytest.Function", item)
    if not hasattr(function, "callspec") or function.originalname in EMBEDDED:
        return False
    return bool(CLIENTS & {str(value) for value in function.callspec.params.values()})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    others = [item for item in items if not _asks_the_server(item)]
    items[:] = [item for item in items if _asks_the_server(item)]
    _do_not_wait(items)
    config.hook.pytest_deselected(items=others)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Some draw the amount of data themselves; both kinds of client get the same.
    seed = cast("pytest.Function", item).originalname
    random.seed(seed)
    np.random.seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    outcomes = ("passed", "failed", "error", "skipped", "xfailed", "xpassed", "deselected")
    report = {
        "counts": {outcome: len(stats.get(outcome, ())) for outcome in outcomes},
        "failures": [entry.nodeid for outcome in ("failed", "error") for entry in stats.get(outcome, ())],
    }
    Path(os.environ[REPORT_VARIABLE]).write_text(json.dumps(report))
