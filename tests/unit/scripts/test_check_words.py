"""The words check finds each phrase of its list, and only as a whole."""

from __future__ import annotations

import pytest

from scripts.check_words import findings


@pytest.mark.parametrize(
    "text",
    [
        '"""Whether this process is still the one that works on its flow run."""',
        "Processes that end when the one that started them is gone, however it went.",
        "that is the same test: it plays the stored units and pays no α again",
        "Take it when the disk is slow.",
        "what it is paid from",
        "# MLflow is\n    # away for a minute",
        "it ends for want of memory",
        "class Doorkeeper:",
        "from mario.jobs import storekeeping",
        "from flows import tenure",
        "the module `flows/attended.py`",
        "see `training/keeping.py`",
        "flows/single.py:train",
    ],
)
def test_the_left_column_of_the_words_table_is_found(text: str) -> None:
    assert list(findings("page.md", text))


@pytest.mark.parametrize(
    "text",
    ["a single run", "keeping the champion", "unattended", "two frames away", "as it wentworth"],
)
def test_ordinary_english_is_not(text: str) -> None:
    assert list(findings("page.md", text)) == []


def test_a_finding_names_file_line_phrase_and_what_to_write() -> None:
    assert list(findings("docs/a.md", "one\ntwo is\naway\n")) == [
        "docs/a.md:2: 'is away'; write: is unreachable"
    ]
