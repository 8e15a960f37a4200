"""The stop string is found wherever token boundaries fall, and only when the newest token completes it."""

from __future__ import annotations

import pytest

from nsr.rollout.native.stop_string import StopString, decode

STOP = "</answer>"


def first_stop(tokenizer, token_ids: list[int], stop: str = STOP) -> tuple[int, int] | None:
    """Number of tokens up to the stop string, and characters after it."""
    finder = StopString(tokenizer, stop, len(tokenizer))
    for count in range(1, len(token_ids) + 1):
        overhang = finder.overhang(token_ids[:count])
        if overhang is not None:
            return count, overhang
    return None


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["12", "</answer>", "tail"], (2, 0)),
        (["12", "</", "answer", ">", "tail"], (4, 0)),
        (["12<", "/ans", "wer", ">", "tail"], (4, 0)),
        (["1", "2<", "/", "a", "n", "s", "w", "e", "r", ">", "tail"], (10, 0)),
        (["12</ans", "wer>\n\n", "tail"], (2, 2)),
        (["12</answer>and more", "tail"], (1, 8)),
        (["12</answer", " >", "<", "/answer", "</answer"], None),
        (["</", "answer"], None),
        ([">", "</answer", ">"], (3, 0)),
    ],
)
def test_boundaries(pieces_tokenizer, pieces: list[str], expected: tuple[int, int] | None) -> None:
    vocabulary = list(dict.fromkeys(pieces))
    tokenizer = pieces_tokenizer(vocabulary)
    assert first_stop(tokenizer, [2 + vocabulary.index(piece) for piece in pieces]) == expected


def test_special_tokens_inside_the_stop_string_do_not_hide_it(pieces_tokenizer) -> None:
    tokenizer = pieces_tokenizer(["</ans", "wer>"])
    assert first_stop(tokenizer, [2, 0, 0, 0, 3, 2]) == (5, 0)


def test_a_stop_string_that_was_passed_over_is_not_found_again(pieces_tokenizer) -> None:
    finder = StopString(pieces_tokenizer(["</answer>", "x", ">", "</answer"]), STOP, 6)
    assert finder.overhang([2]) == 0
    assert finder.overhang([2, 3]) is None
    assert finder.overhang([2, 3, 4]) is None
    assert finder.overhang([2, 4]) is None
    assert finder.overhang([2, 5, 4]) == 0


@pytest.mark.parametrize("stop", ["</answer>", "zu Ende: ∎", "é", "🙂🙂"])
@pytest.mark.parametrize("before", ["", "x" * 40, "naïve – ∎ ", "🙂"])
def test_bytes_of_characters_split_over_tokens(byte_tokenizer, stop: str, before: str) -> None:
    whole = before + stop
    head = byte_tokenizer.encode(whole, add_special_tokens=False)
    tail = byte_tokenizer.encode("é> and more", add_special_tokens=False)
    assert len(head) == len(whole.encode())
    assert decode(byte_tokenizer, head) == whole
    upto = whole[: whole.find(stop) + len(stop)]
    assert first_stop(byte_tokenizer, head + tail, stop) == (len(upto.encode()), 0)


def test_a_tail_far_longer_than_the_stop_string_is_not_decoded(pieces_tokenizer, monkeypatch) -> None:
    tokenizer = pieces_tokenizer(["x", ">"])
    finder = StopString(tokenizer, STOP, len(tokenizer))
    decoded: list[int] = []
    original = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **kw: decoded.append(len(ids)) or original(ids, **kw))
    assert finder.overhang([2] * 5000) is None
    assert decoded == []  # "x" completes nothing
    assert finder.overhang([2] * 5000 + [3]) is None
    assert 0 < max(decoded) <= 2 * len(STOP)


def test_an_empty_stop_string_stops_nothing(pieces_tokenizer) -> None:
    assert first_stop(pieces_tokenizer(["</answer>"]), [2, 2], "") is None
