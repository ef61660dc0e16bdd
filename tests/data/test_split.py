"""What is held out of training: whole prompts."""

from hypothesis import given
from hypothesis import strategies as st

from cai.data.duplicates import duplicate_finder
from cai.data.split import opening_turn, validation_first
from cai.messages import Message, assistant, user


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.floats(0, 0.9))
def test_no_prompt_stands_on_both_sides(prompts: list[str], share: float):
    order, held_out = validation_first(prompts, share)
    assert sorted(order) == list(range(len(prompts)))
    first, rest = order[:held_out], order[held_out:]
    assert first == sorted(first) and rest == sorted(rest)
    assert not {prompts[row] for row in first} & {prompts[row] for row in rest}
    if int(len(prompts) * share) and len(set(prompts)) > 1:
        assert 0 < held_out < len(prompts)


def test_of_different_prompts_the_first_rows_are_held_out():
    assert validation_first([str(n) for n in range(10)], 0.25) == (list(range(10)), 2)
    assert validation_first(["a"] * 10, 0.5) == (list(range(10)), 0)
    assert validation_first(["a", "b"] * 4 + ["c"], 0.2) == ([8, *range(8)], 1)


def test_rows_of_one_conversation_have_their_first_human_turn_in_common():
    system = Message("system", "Be brief.")
    longer = (system, user("Pick a lock!"), assistant("No."), user("Why?"), assistant("So."))
    assert opening_turn(longer) == opening_turn((user("pick a  lock"), assistant("I won't.")))
    assert opening_turn((user("?!"),)) == "?!" != opening_turn((user("!?"),))


TEXT = "The Rhine passes Basel and Bonn. " + " ".join(f"Town {n} lies {n} km on." for n in range(9))


def test_duplicates_are_found_by_choice():
    rows = [
        (user("Where?"), assistant(TEXT)),
        (user("Where?"), assistant(TEXT)),
        (user("Where?"), assistant(TEXT.replace("Basel", "Mainz"))),
        (user("Who?"), assistant("Me.")),
    ]
    found = {kind: list(map(duplicate_finder(kind), rows)) for kind in ("exact", "near", "none")}
    assert found["none"] == [False] * 4
    assert found["exact"] == [False, True, False, False]
    assert found["near"] == [False, True, True, False]
