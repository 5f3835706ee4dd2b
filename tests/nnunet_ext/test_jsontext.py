"""Edits change what they name; every other byte stays as it was typed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ext import jsontext
from nnunet_ext.errors import Damaged, Refused
from nnunet_ext.jsontext import Edit

# layouts a program would write; `dump` types a document in one of them
LAYOUTS = st.fixed_dictionaries(
    {
        "indent": st.sampled_from([None, 1, 2, 4, "\t"]),
        "tight": st.booleans(),
        "escaped": st.booleans(),
        "crlf": st.booleans(),
        "around": st.sampled_from([("", ""), ("", "\n"), ("  ", " \n\n")]),
    }
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
KEYS = st.text(max_size=5) | st.sampled_from(["batch_size", "spacing", "größe", 'a "b"'])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=5)


def dump(document: object, layout: dict[str, Any]) -> str:
    indent, tight = layout["indent"], layout["tight"]
    comma = "," if tight or indent is not None else ", "
    text = json.dumps(
        document, indent=indent, ensure_ascii=layout["escaped"], separators=(comma, ":" if tight else ": ")
    )
    text = layout["around"][0] + text + layout["around"][1]
    return text.replace("\n", "\r\n") if layout["crlf"] else text


def changed(data: st.DataObject, value: Any) -> Any:
    """The value with members lost, changed and gained (last), at any depth."""
    if isinstance(value, dict):
        kept = {key: changed(data, inner) for key, inner in value.items() if not data.draw(st.booleans(), "lose")}
        gained = data.draw(st.dictionaries(KEYS, VALUES, max_size=2), "gained")
        return kept | {key: inner for key, inner in gained.items() if key not in value}
    if isinstance(value, list) and data.draw(st.booleans(), "go into the list"):
        return [changed(data, inner) for inner in value]
    return data.draw(VALUES, "other") if data.draw(st.booleans(), "change") else value


def strict(value: object) -> str:
    return json.dumps(value, sort_keys=True)  # tells 1, 1.0 and True apart


@given(st.data(), DOCUMENTS, LAYOUTS)
def test_a_regular_text_is_edited_as_if_it_were_written_anew_and_back_again(
    data: st.DataObject, old: dict[str, Any], layout: dict[str, Any]
) -> None:
    new = changed(data, copy.deepcopy(old))
    text = dump(old, layout)
    edits = jsontext.difference(text, old, new)
    edited = jsontext.apply(text, edits)
    assert strict(json.loads(edited)) == strict(new)
    assert jsontext.apply(edited, jsontext.invert(edits)) == text
    escaped = text.isascii() and "\x7f" not in text
    if new:  # an empty document has no layout to keep
        assert edited == dump(json.loads(edited), {**layout, "escaped": escaped})


@given(DOCUMENTS, LAYOUTS)
def test_an_equal_value_needs_no_edit_whatever_the_order_of_its_keys(
    old: dict[str, Any], layout: dict[str, Any]
) -> None:
    assert jsontext.difference(dump(old, layout), old, dict(reversed(old.items()))) == ()


BY_HAND = """{ "spacing": [1.0, 2.50,1e-05],
   "huge" : 12345678901234567890123, "nan": [NaN, -Infinity],
\t"a": {"b":[[3,3],
             [3, 3]], "c": "\\u00e9\\/"},
  "last": {}}

"""


def edited(text: str, new: object) -> str:
    return jsontext.apply(text, jsontext.difference(text, json.loads(text), new))


@pytest.mark.parametrize(
    ("path", "value", "before", "after"),
    [
        (("spacing", 1), 3, "2.50", "3"),
        (("huge",), 1, "12345678901234567890123", "1"),
        (("a", "b", 1, 0), True, "[3, 3]", "[true, 3]"),
        (("a", "c"), "é", '"\\u00e9\\/"', '"\\u00e9"'),
        (("last",), {"x": [1]}, '"last": {}', '"last": {\n      "x": [\n          1\n      ]\n  }'),
        (("a", "b"), [[3, 3], [1, 1], [3, 3]], "[3, 3]]", "[1, 1],\n             [3, 3]]"),
    ],
)
def test_hand_made_text_changes_at_one_place_only(
    path: tuple[str | int, ...], value: object, before: str, after: str
) -> None:
    document = json.loads(BY_HAND.replace("NaN", "0"))
    old = copy.deepcopy(document)
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    edits = jsontext.difference(BY_HAND, old, document)
    new = jsontext.apply(BY_HAND, edits)
    head, found, tail = BY_HAND.rpartition(before)
    assert found
    assert new == head + after + tail
    assert jsontext.apply(new, jsontext.invert(edits)) == BY_HAND


@given(st.data())
def test_even_hand_made_text_comes_back_byte_for_byte(data: st.DataObject) -> None:
    old = json.loads(BY_HAND.replace("NaN, -Infinity", "0, 1"))
    edits = jsontext.difference(BY_HAND, old, changed(data, copy.deepcopy(old)))
    assert jsontext.apply(jsontext.apply(BY_HAND, edits), jsontext.invert(edits)) == BY_HAND


def test_members_that_come_and_go_are_laid_out_like_their_siblings() -> None:
    text = '{\n  "a": 1,\n  "b": {"x" : 1},\n  "c": [1, 2]\n}'
    new = edited(text, {"a": 1, "b": {"x": 1, "y": 2}, "d": [1, 2, 3], "e": {"f": 0}})
    assert new == '{\n  "a": 1,\n  "b": {"x" : 1, "y": 2},\n  "d": [1, 2, 3],\n  "e": {"f": 0}\n}'


def test_true_is_not_one() -> None:
    assert edited('{"a": 1, "b": false}', {"a": True, "b": 0}) == '{"a": true, "b": 0}'


def test_an_array_that_grows_at_the_front_keeps_the_spelling_of_its_elements() -> None:
    assert edited("[1.0, 2.50]", [4, 1.0, 2.5]) == "[4, 1.0, 2.50]"


def test_a_key_that_stands_twice_is_refused_only_where_an_edit_would_have_to_choose() -> None:
    text = '{"a": {"b": 1, "b": 2}, "c": 3}'
    assert edited(text, {"a": {"b": 2}, "c": 4}) == '{"a": {"b": 1, "b": 2}, "c": 4}'
    with pytest.raises(Damaged, match="'b' stands twice"):
        edited(text, {"a": {"b": 5}, "c": 3})


@pytest.mark.parametrize(
    "edit",
    [
        Edit(("gone", "x"), None, "1", None, ('"x": ', ", ")),
        Edit(("a", "x"), None, "1", None, ('"x": ', ", ")),
        Edit(("gone",), "1", None),
        Edit(("a", 7), "1", "2"),
    ],
)
def test_an_edit_whose_place_is_gone_is_refused(edit: Edit) -> None:
    with pytest.raises(Refused, match="any more"):
        jsontext.apply('{"a": [1]}', [edit])


def test_a_member_returns_even_if_its_neighbours_are_gone() -> None:
    back = Edit(("x",), None, "1", "a", (', "x": ', ""))
    assert jsontext.apply('{"b": 2}', [back]) == '{"b": 2, "x": 1}'
    assert jsontext.apply("{}", [back]) == '{"x": 1}'


def test_texts_of_one_value_are_the_same_and_absence_is_no_value() -> None:
    assert jsontext.same("[1.5,\n NaN]", "[1.50, NaN]")
    assert not jsontext.same("1", "true")
    assert not jsontext.same("null", None)
    assert jsontext.same(None, None)
