"""Whom the keeper looks at: whoever something has happened to at once, everybody when it may concern all, each in its turn."""

from __future__ import annotations

from elastic_kernels.gateway.attention import Attention

MANY = {str(number) for number in range(3000)}


def nobody() -> set[str]:
    raise AssertionError("there is no need to count them")


def test_all_at_the_beginning_and_when_it_may_concern_any() -> None:
    attention = Attention()
    assert attention.take(0.0, lambda: MANY) == MANY
    attention.everybody()
    assert attention.take(0.0, lambda: MANY) == MANY


def test_those_that_something_has_happened_to() -> None:
    attention = Attention()
    attention.take(10.0, lambda: MANY)
    attention.take(10.0, lambda: MANY)
    attention.due |= {"1", "2"}
    assert attention.take(10.5, nobody) == {"1", "2"}
    assert attention.take(10.6, nobody) == set()


def test_each_in_its_turn() -> None:
    attention = Attention()
    attention.take(0.0, lambda: MANY)
    turns = [attention.take(float(second), lambda: MANY) for second in range(1, 11)]
    assert {len(turn) for turn in turns} == {300}
    assert set().union(*turns) == MANY


def test_few_have_their_turn_each_second() -> None:
    attention = Attention()
    few = {"a", "b"}
    assert [attention.take(float(second), lambda: few) for second in range(4)] == [few] * 4


def test_whoever_comes_later_has_a_turn_as_well() -> None:
    attention = Attention()
    everybody = {"a"}
    attention.take(0.0, lambda: everybody)
    assert attention.take(1.0, lambda: everybody) == {"a"}
    everybody.add("b")
    assert attention.take(2.0, lambda: everybody) == {"a", "b"}
