"""What parity tests share: the helper modules of this folder, the variants, and the reference's kept answers.

Test modules import `reference`, `prompt_cases` and `expected` by name. Two variables choose what a run does:
MASKLET_PARITY_CACHE, the folder of kept answers, and MASKLET_PARITY_VARIANTS, names separated by commas (all
by default).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import expected as kept_answers
import reference

# Read on import, like the folder: before the first test runs, the user's variables are taken away.
_VARIANTS = [name for name in os.environ.get("MASKLET_PARITY_VARIANTS", "").split(",") if name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `variant` runs for each; of session scope, so that one variant is finished before the
    next."""
    if "variant" in metafunc.fixturenames:
        unknown = set(_VARIANTS) - set(reference.VARIANTS)
        if unknown:
            raise pytest.UsageError(f"MASKLET_PARITY_VARIANTS names no variant: {', '.join(sorted(unknown))}")
        metafunc.parametrize("variant", _VARIANTS or list(reference.VARIANTS), scope="session")


@pytest.fixture(scope="session")
def expected_of() -> Callable[[str], kept_answers.Expected]:
    """The reference's answers for a variant: `expected_of("sam2.1_hiera_tiny").prompt("box")`."""
    return cache(kept_answers.Expected)


@pytest.fixture
def expected(variant: str, expected_of: Callable[[str], kept_answers.Expected]) -> kept_answers.Expected:
    """`expected_of` the test's variant."""
    return expected_of(variant)


@pytest.fixture(autouse=True)
def restore_torch_threads() -> Iterator[None]:
    """Put torch's thread count back, if a test imported torch and changed it."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)
