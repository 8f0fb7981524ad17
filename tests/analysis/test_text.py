import json

import pytest

from llc.analysis.text import printable


@pytest.mark.parametrize(
    "char", ["\x1b", "\x07", "\r", "\x7f", "\x9b", "\u202e", "\u200b", "\u2028", "\ud800", "\U000e0041"]
)
def test_what_a_terminal_acts_on_is_shown(char):
    shown = printable(f"a{char}b")
    assert char not in shown
    assert shown.isprintable()
    assert json.loads(f'"{shown}"') == f"a{char}b", "in JSON it is the same text"


def test_other_text_stays():
    text = "λ̂ = 1.2 ± 0.1\n\tnβ, ‖w*‖, $x$, 漢字"
    assert printable(text) == text
