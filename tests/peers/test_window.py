"""The adapters, `make peers` and the page name the same releases."""

from importlib import import_module

import pytest

from bench.harness import ROOT
from tests.peers.window import WINDOW


@pytest.mark.parametrize("peer", WINDOW)
def test_the_adapter_the_makefile_and_the_page_name_one_window(peer):
    newest, *older = WINDOW[peer]
    known = import_module(f"fastgrpo_kernels.adapters.{peer}").KNOWN_VERSIONS
    assert known == (*reversed(older), newest)
    made = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("OLDER_PEERS"))
    assert [word.removeprefix(f"{peer}-") for word in made.split() if word.startswith(f"{peer}-")] == older
    assert f" {', '.join(known)}\n" in (ROOT / "docs" / "adapters.md").read_text()
