"""Plans: nnU-Net's <plans>.json read, asked and patched with jq programs; every patch is recorded and reversible.

Beside the plans file stand, from the first patch on: `<plans>.json.orig`, the file as it first was;
`<plans>.json.patches.jsonl`, one line per patch in force; and an empty lock file.

A patch writes its record first, then the plans. Killed in between, the record's values are not in the plans
and the next patch or undo drops it; the other order could leave a changed plan that nobody can take back.
An undo writes the plans first, then the record: killed in between, it leaves that same state.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jq  # a compiled module without type hints

from nnunet_ext import jsontext
from nnunet_ext.configuration import Configuration
from nnunet_ext.errors import Damaged, NnxError, NoSuchRun, Refused
from nnunet_ext.host import write_whole
from nnunet_ext.jsontext import Edit, Json, shown

_PLAN_AGAIN = "Write a new one with: nnUNetv2_plan_and_preprocess -d DATASET_ID"


@dataclass(frozen=True)
class Patch:
    """One recorded patch: the jq program, its arguments, what it changed, when (UTC) and why."""

    program: str
    args: tuple[tuple[str, Json], ...]
    edits: tuple[Edit, ...]
    when: datetime
    why: str


@dataclass(frozen=True)
class Plans:
    """A plans file as it was when it was read; `patch` and `undo` return it as it is afterwards."""

    path: Path
    text: str = field(repr=False)
    _document: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def read(cls, path: Path) -> Plans:
        """Read a plans file of nnU-Net v2; NoSuchRun if there is none, Damaged if it is something else."""
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NoSuchRun(f"There is no plans file {path}", _PLAN_AGAIN) from None
        except IsADirectoryError:
            raise Damaged(f"{path} is a folder, not a plans file", _PLAN_AGAIN) from None
        try:
            return _parsed(path, data.decode())
        except UnicodeDecodeError:
            hint = f"Plans of nnU-Net v1 (.pkl) cannot be used. {_PLAN_AGAIN}"
            raise Damaged(f"{path} is not text, so it is no plans file of nnU-Net v2", hint) from None

    @property
    def name(self) -> str:
        """The plans identifier, such as nnUNetPlans."""
        return str(self._document["plans_name"])

    @property
    def dataset_name(self) -> str:
        return str(self._document["dataset_name"])

    @property
    def configurations(self) -> tuple[str, ...]:
        """The names of the configurations, in the order of the file."""
        return tuple(self._document["configurations"])

    def configuration(self, name: str) -> Configuration:
        """The configuration with its inheritance resolved as nnU-Net does (PlansManager, 2.8.1).

        NoSuchRun if the plan has none of that name; Damaged if its ancestors are unknown or circular, or if
        batch or patch size are missing.
        """
        entry: dict[str, Json] = {}
        for ancestor in reversed(self._chain(name)):
            entry.update(self._document["configurations"][ancestor])
        with _naming(self.path):
            return Configuration.parse(self.name, name, entry)

    def owner(self, configuration: str, key: str) -> str | None:
        """The configuration, this one or an ancestor, in which the key stands; None if it stands in none.

        To patch an inherited key there would change the ancestor too, and every other heir. So a patch meant
        for this configuration adds the key to it, as `batch_size_program` does.
        """
        entries = self._document["configurations"]
        return next((name for name in self._chain(configuration) if key in entries[name]), None)

    def batch_size_program(self, configuration: str, batch_size: int) -> str:
        """The jq program that gives this configuration, and none that it inherits from, a batch size."""
        self._chain(configuration)
        return f".configurations[{json.dumps(configuration)}].batch_size = {batch_size}"

    def ask(self, program: str, /, **args: Json) -> tuple[Json, ...]:
        """What a jq program yields on the plan; Refused with jq's words if it fails. NaN reads as None."""
        with _naming(self.path):
            return tuple(_run(program, self.text, args))

    def patch(self, program: str, why: str, /, *, when: datetime, **args: Json) -> Plans:
        """Change the plan by a jq program, which sees `args` as $name; the file's other bytes stay.

        Values are compared after both went through jq, so a NaN or an integer beyond 2**53, which jq cannot
        hold, stays as it is unless the program changes it. Refused, with nothing changed, if the program
        fails, does not yield exactly one plan, renames what names the results folder (nnU-Net would start at
        epoch 0), or if the file was changed since it was read. A patch that changes nothing writes nothing.
        """
        with _naming(self.path):
            old, new = _only(".", self.text, {}), _only(program, self.text, args)
            edits = jsontext.difference(self.text, old, new)
            text = jsontext.apply(self.text, edits)
        if not edits:
            return self
        patched = self._with(text, program)
        patch = Patch(program, tuple(args.items()), edits, when.astimezone(timezone.utc), why)
        with self._unchanged():
            if not self._beside(".orig").exists():
                write_whole(self._beside(".orig"), self.text.encode())
            self._write_record((*self.patches(), patch))
            write_whole(self.path.resolve(), patched.text.encode())
        return patched

    def patches(self) -> tuple[Patch, ...]:
        """The patches in force, oldest first; Damaged if their record cannot be read."""
        record = self._record()
        return record[:-1] if record and self._is_taken_back(record[-1]) else record

    def undo(self) -> Plans:
        """Take the last recorded patch back, byte for byte.

        Refused if there is none, if a value is not what the patch wrote, or if the file was changed since it
        was read. Exactly one patch leaves the record: one that a kill or a person took back already, too.
        """
        with self._unchanged():
            record = self._record()
            if not record:
                raise Refused(f"There is no patch of {self.path} to undo")
            restored = self if self._is_taken_back(record[-1]) else self._without(record[-1])
            write_whole(self.path.resolve(), restored.text.encode())
            self._write_record(record[:-1])
        return restored

    def _chain(self, name: str) -> tuple[str, ...]:
        """The configuration and its ancestors, nearest first."""
        entries = self._document["configurations"]
        if name not in entries:
            near = difflib.get_close_matches(name, entries, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise NoSuchRun(f"{self.path} has no configuration {name}", f"{hint}It has: {', '.join(entries)}")
        chain = [name]
        while "inherits_from" in entries[chain[-1]]:
            parent = entries[chain[-1]]["inherits_from"]
            if not isinstance(parent, str) or parent not in entries:
                raise Damaged(f"In {self.path}, {chain[-1]} inherits from {parent!r}, which is not there")
            if parent in chain:
                circle = " -> ".join([*chain, parent])
                raise Damaged(f"In {self.path}, configurations inherit in a circle: {circle}")
            chain.append(parent)
        return tuple(chain)

    def _with(self, text: str, program: str) -> Plans:
        """The plans as the program leaves them; Refused if they are none, or the plans of another run."""
        try:
            patched = _parsed(self.path, text)
        except Damaged as damaged:
            raise Refused(f"{program!r} leaves no plan of {self.path}: {damaged.sentence}") from damaged
        lost = [f"configuration {name}" for name in self.configurations if name not in patched.configurations]
        lost += ["plans_name"] if self.name != patched.name else []
        lost += ["dataset_name"] if self.dataset_name != patched.dataset_name else []
        if lost:
            sentence = f"{program!r} would remove or rename {', '.join(lost)} in {self.path}"
            raise Refused(sentence, "nnU-Net would look for its results elsewhere and start at epoch 0.")
        sound = self._sound()
        broken = [name for name in self.configurations if name in sound and name not in patched._sound()]
        if broken:
            raise Refused(f"{program!r} would leave {', '.join(broken)} in {self.path} unusable")
        return patched

    def _sound(self) -> set[str]:
        """The configurations that can be used."""
        names = set()
        for name in self.configurations:
            with contextlib.suppress(NnxError):
                names.add(self.configuration(name).name)
        return names

    def _is_taken_back(self, patch: Patch) -> bool:
        """Whether everything the patch changed is as it was before it."""
        return all(jsontext.same(jsontext.found(self.text, e.path), e.before) for e in patch.edits)

    def _without(self, patch: Patch) -> Plans:
        """The plans as they were before the patch; Refused if a value is not what the patch wrote."""
        for edit in patch.edits:
            now = jsontext.found(self.text, edit.path)
            if not jsontext.same(now, edit.after):
                sentence = f"{shown(edit.path)} in {self.path} is {_short(now)}"
                raise Refused(f"{sentence}, but the patch to undo made it {_short(edit.after)}")
        with _naming(self.path):
            text = jsontext.apply(self.text, jsontext.invert(patch.edits))
        return _parsed(self.path, text)

    def _beside(self, ending: str) -> Path:
        """A file beside the plans, or beside what they are a link to."""
        target = self.path.resolve()
        return target.with_name(target.name + ending)

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Hold the plans alone, and only if they still are what was read; otherwise Refused."""
        lock = self._beside(".lock")
        with lock.with_name(f".{lock.name}").open("a") as held:
            with contextlib.suppress(OSError):  # network folders without locks: the comparison has to do
                fcntl.flock(held, fcntl.LOCK_EX)
            if self.path.read_bytes() != self.text.encode():
                raise Refused(f"{self.path} was changed by somebody else meanwhile", "Try again.")
            yield

    def _record(self) -> tuple[Patch, ...]:
        path = self._beside(".patches.jsonl")
        try:
            return tuple(_recorded(line) for line in path.read_text("utf-8").splitlines())
        except FileNotFoundError:
            return ()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Damaged(
                f"{path}, the record of patches, cannot be read",
                f"Move it away to go on; the plan as it first was is {self._beside('.orig')}",
            ) from None

    def _write_record(self, patches: Sequence[Patch]) -> None:
        lines = [
            json.dumps({**asdict(patch), "args": dict(patch.args), "when": patch.when.isoformat()}) + "\n"
            for patch in patches
        ]
        write_whole(self._beside(".patches.jsonl"), "".join(lines).encode())


def _parsed(path: Path, text: str) -> Plans:
    """The plans that the text holds, or Damaged. A byte order mark is refused, since nnU-Net refuses it."""
    if text.startswith("\ufeff"):
        raise Damaged(f"{path} starts with a byte order mark, which nnU-Net cannot read", "Save it without.")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not readable JSON: {error}", _PLAN_AGAIN) from None
    if not isinstance(document, dict) or not isinstance(document.get("configurations"), dict):
        raise Damaged(f"{path} is no plans file of nnU-Net v2: it has no configurations", _PLAN_AGAIN)
    for key in ("plans_name", "dataset_name"):
        if not isinstance(document.get(key), str):
            raise Damaged(f"{path} is no plans file of nnU-Net v2: it has no {key}", _PLAN_AGAIN)
    for name, entry in document["configurations"].items():
        if not isinstance(entry, dict):
            raise Damaged(f"Configuration {name} in {path} is not an object", _PLAN_AGAIN)
    return Plans(path, text, document)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say in which file it went wrong."""
    try:
        yield
    except NnxError as error:
        raise type(error)(f"{path}: {error.sentence}", error.hint) from None


def _run(program: str, text: str, args: Mapping[str, Json]) -> Iterator[Json]:
    try:
        yield from jq.compile(program, args=dict(args)).input_text(text)
    except ValueError as error:
        hint = "The language: https://jqlang.org/manual"
        raise Refused(f"The jq program {program!r} failed: {str(error).strip()}", hint) from None


def _only(program: str, text: str, args: Mapping[str, Json]) -> Json:
    """The one value a program yields; no more than two are asked for, it may have no end."""
    values = list(itertools.islice(_run(program, text, args), 2))
    if len(values) != 1:
        count = "nothing" if not values else "more than one value"
        raise Refused(f"The jq program {program!r} yields {count}, not one plan")
    return values[0]


def _recorded(line: str) -> Patch:
    fields = json.loads(line)
    edits = [Edit(**{**edit, "path": tuple(edit["path"]), "around": tuple(edit["around"])}) for edit in fields["edits"]]
    when = datetime.fromisoformat(fields["when"])
    return Patch(fields["program"], tuple(fields["args"].items()), tuple(edits), when, fields["why"])


def _short(text: str | None) -> str:
    """A value for a sentence: on one line, its beginning if it is long."""
    if text is None:
        return "absent"
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
