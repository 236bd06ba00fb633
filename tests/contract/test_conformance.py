"""What is said about chromadb's own tests is what the run takes for granted."""

import re
from pathlib import Path

from conformance import upstream

PAGE = (Path(__file__).parents[2] / "docs/CONFORMANCE.md").read_text()


def test_every_test_that_cannot_pass_is_explained_and_no_other() -> None:
    explained = re.findall(r"^\| `(test_\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(explained) == sorted(upstream.CANNOT_PASS)
    assert f"{len(upstream.FILES)} files" in PAGE
