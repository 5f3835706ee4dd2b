"""Editing JSON text in place: what an edit does not name stays byte for byte as it was typed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from nnunet_ext.errors import Damaged, Refused

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
KeyPath: TypeAlias = "tuple[str | int, ...]"


@dataclass(frozen=True)
class Edit:
    """One value that changes: JSON texts before and after, None where the key is absent.

    A member that comes or goes stands behind the key `behind` (None: it stands first), and with its value
    come or go the texts `around` it: the comma, the line break, the key as typed. Members of arrays never
    come or go: an array that changes its length is one edit, and so is an object that becomes empty or
    stops being so.
    """

    path: KeyPath
    before: str | None
    after: str | None
    behind: str | None = None
    around: tuple[str, str] = ("", "")


def difference(text: str, old: Json, new: Json) -> tuple[Edit, ...]:
    """The edits that lead `text`, which holds the value `old`, to the value `new`.

    The order of an object's keys is no difference. New containers are laid out like their siblings.
    """
    style = _style(text)
    edits: list[Edit] = []
    pairs: list[tuple[KeyPath, Json, Json]] = [((), old, new)]
    while pairs:
        path, old, new = pairs.pop(0)
        if isinstance(old, dict) and isinstance(new, dict) and old and new:
            edits += _gained_and_lost(text, path, old, new, style)
            pairs += [((*path, key), old[key], new[key]) for key in old if key in new]
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            pairs += [((*path, index), *both) for index, both in enumerate(zip(old, new, strict=True))]
        elif type(old) is not type(new) or old != new:  # the types too: True == 1
            edits.append(_replaced(text, path, old, new, style))
    return tuple(edits)


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The text with the edits made, one after the other; Refused where the place for one is gone."""
    for edit in edits:
        span = _span(text, edit.path)
        if edit.before is None or edit.after is None:
            text = _inserted(text, edit, edit.after) if edit.after is not None else _removed(text, edit)
        elif span is None:
            raise Refused(f"There is no {shown(edit.path)} any more to be changed")
        else:
            text = text[: span[0]] + edit.after + text[span[1] :]
    return text


def invert(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The edits that take these back, in the order in which they must be made."""
    return tuple(replace(edit, before=edit.after, after=edit.before) for edit in reversed(edits))


def found(text: str, path: KeyPath) -> str | None:
    """The JSON text of the value at `path`, as typed; None where there is none."""
    span = _span(text, path)
    return None if span is None else text[span[0] : span[1]]


def same(one: str | None, other: str | None) -> bool:
    """Whether two JSON texts hold the same value, however they are laid out; None equals None only."""
    if one is None or other is None:
        return one is other
    return _canonical(json.loads(one)) == _canonical(json.loads(other))


def shown(path: KeyPath) -> str:
    """The path as a person reads it: configurations/2d/batch_size."""
    return "/".join(str(step) for step in path) or "the document"


# Where things stand. Python's own decoder does the lexing: it finds the end of a value in C.

_scan = json.JSONDecoder().raw_decode
_blank = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class _Member:
    """A key and its value in an object, or an index and its value in an array, with offsets in the text."""

    key: str | int
    start: int  # of the key, in an array of the value
    value: int
    end: int


def _members(text: str, opening: int) -> list[_Member]:
    """The members of the object or array whose bracket stands at `opening`; Damaged if a key stands twice.

    Python and jq read the last of two; which of them a patch should change, nobody can say.
    """
    members = list(_walk(text, opening))
    if len({member.key for member in members}) < len(members):
        keys = [member.key for member in members]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Damaged(f"The key {twice!r} stands twice in one object", "Remove one of the two by hand.")
    return members


def _walk(text: str, opening: int) -> Iterator[_Member]:
    at, count = _skip(text, opening + 1), 0
    while text[at] not in "]}":
        start = at = _skip(text, at + 1) if text[at] == "," else at
        key: str | int = count
        if text[opening] == "{":
            key, at = _scan(text, at)
            at = _skip(text, _skip(text, at) + 1)  # over the colon
        end = _scan(text, at)[1]
        yield _Member(key, start, at, end)
        at, count = _skip(text, end), count + 1


def _skip(text: str, at: int) -> int:
    """The first place from `at` on that is not white space."""
    match = _blank.match(text, at)
    return match.end() if match else at


def _span(text: str, path: KeyPath) -> tuple[int, int] | None:
    """Where the value at `path` starts and ends."""
    start = _skip(text, 0)
    for step in path:
        members = _members(text, start) if text[start] in "{[" else []
        start = next((member.value for member in members if member.key == step), -1)
        if start < 0:
            return None
    return start, _scan(text, start)[1]


# What changes.


def _gained_and_lost(
    text: str, path: KeyPath, old: dict[str, Json], new: dict[str, Json], style: _Style
) -> Iterator[Edit]:
    """New members behind the last one, then the lost ones out; in this order the object is never empty."""
    gained, lost = [key for key in new if key not in old], [key for key in old if key not in new]
    if not gained and not lost:
        return
    start, end = _span(text, path) or (0, 0)
    members = _members(text, start)
    spread = _is_spread([text[member.value : member.end] for member in members], text[start:end])
    line = _line_start(text, members[-1].start) if spread else None
    comma = _comma(text, start, members, style)
    order = [str(member.key) for member in members]
    for key in gained:
        head = comma + json.dumps(key, ensure_ascii=style.escaped) + style.colon
        yield Edit((*path, key), None, _spelled(new[key], style, line), order[-1], (head, ""))
        order.append(key)
    for index, member in enumerate(members):
        if member.key in lost:
            at = order.index(str(member.key))
            head = text[members[index - 1].end if at else member.start : member.value]
            next_start = members[index + 1].start if index + 1 < len(members) else None
            tail = comma if next_start is None else text[member.end : next_start]
            raw = text[member.value : member.end]
            behind, around = (order[at - 1], (head, "")) if at else (None, (head, tail))
            yield Edit((*path, member.key), raw, None, behind, around)
            del order[at]


def _replaced(text: str, path: KeyPath, old: Json, new: Json, style: _Style) -> Edit:
    start, end = _span(text, path) or (0, len(text))
    before = text[start:end]
    if old and new and isinstance(old, list) and isinstance(new, list):
        return Edit(path, before, _resized(text, start, old, new, style))
    outer = _span(text, path[:-1]) or (start, end)
    siblings = _members(text, outer[0]) if path else []
    spread = _is_spread([before], "") or _is_spread(
        [text[member.value : member.end] for member in siblings], text[outer[0] : outer[1]]
    )
    return Edit(path, before, _spelled(new, style, _line_start(text, start) if spread else None))


def _resized(text: str, start: int, old: list[Json], new: list[Json], style: _Style) -> str:
    """An array of another length; elements that were in it before are spelled as they were."""
    members = _members(text, start)
    typed = [text[member.value : member.end] for member in members]
    known = {_canonical(value): raw for value, raw in zip(old, typed, strict=True)}
    end = _scan(text, start)[1]
    line = _line_start(text, members[0].start) if _is_spread(typed, text[start:end]) else None
    elements = [
        typed[index]
        if index < len(old) and _canonical(old[index]) == _canonical(value)
        else known.get(_canonical(value)) or _spelled(value, style, line)
        for index, value in enumerate(new)
    ]
    lead, tail = text[start + 1 : members[0].start], text[members[-1].end : end - 1]
    return "[" + lead + _comma(text, start, members, style).join(elements) + tail + "]"


# How things are laid out.


@dataclass(frozen=True)
class _Style:
    """How a text is typed: one step of indentation, the colon, the comma within a line, escapes or not."""

    unit: str
    colon: str
    comma: str
    escaped: bool


def _style(text: str) -> _Style:
    start = _skip(text, 0)
    first = next(_walk(text, start), None) if text[start] in "{[" else None
    colon = ": "
    if first is not None and text[start] == "{":
        colon = text[_scan(text, first.start)[1] : first.value]
    lead = text[start + 1 : first.start] if first else ""
    comma = ", " if colon.endswith(" ") else ","
    escaped = text.isascii() and "\x7f" not in text  # what Python writes unless asked not to
    return _Style(lead.rpartition("\n")[2] if "\n" in lead else "    ", colon, comma, escaped)


def _is_spread(containers: list[str], around: str) -> bool:
    """Whether a container among these siblings is written over several lines."""
    filled = [raw for raw in containers if raw[0] in "{[" and raw[1:-1].strip()]
    return any("\n" in raw for raw in filled or [around])


def _line_start(text: str, at: int) -> str:
    """The line break and the indentation of the line in which `at` stands."""
    start = text.rfind("\n", 0, at) + 1
    ending = "\r\n" if "\r\n" in text else "\n"
    return ending + text[start : _skip(text, start)]


def _spelled(value: Json, style: _Style, line: str | None) -> str:
    """The value as JSON text, on one line or, if the text of a line start is given, over several."""
    if line is None:
        return json.dumps(value, ensure_ascii=style.escaped, separators=(style.comma, style.colon))
    spread = json.dumps(value, ensure_ascii=style.escaped, indent=style.unit, separators=(",", style.colon))
    return spread.replace("\n", line)


def _comma(text: str, opening: int, members: list[_Member], style: _Style) -> str:
    """What stands before the last of these members, or would stand behind it if it is the only one."""
    if len(members) > 1:
        return text[members[-2].end : members[-1].start]
    lead = text[opening + 1 : members[0].start]
    return "," + lead if lead else style.comma


def _inserted(text: str, edit: Edit, after: str) -> str:
    *parent, key = edit.path
    span = _span(text, tuple(parent))
    if span is None or text[span[0]] != "{":
        raise Refused(f"There is no object {shown(tuple(parent))} any more to put {key!r} into")
    members, (head, tail) = _members(text, span[0]), edit.around
    if not members:
        return text[: span[0] + 1] + head.lstrip(", \t\r\n") + after + text[span[0] + 1 :]
    ends = {member.key: member.end for member in members}
    at = members[0].start if edit.behind is None else ends.get(edit.behind, members[-1].end)
    return text[:at] + head + after + tail + text[at:]


def _removed(text: str, edit: Edit) -> str:
    span = _span(text, edit.path[:-1])
    members = _members(text, span[0]) if span and text[span[0]] == "{" else []
    at = next((index for index, member in enumerate(members) if member.key == edit.path[-1]), None)
    if at is None:
        raise Refused(f"There is no {shown(edit.path)} any more to be removed")
    if at > 0:
        return text[: members[at - 1].end] + text[members[at].end :]
    end = members[1].start if len(members) > 1 else members[0].end
    return text[: members[0].start] + text[end:]


def _canonical(value: Json) -> str:
    return json.dumps(value, sort_keys=True)
