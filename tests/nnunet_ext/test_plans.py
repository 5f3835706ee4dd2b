"""Plans are read as nnU-Net reads them; a patch changes what it names, is recorded, and can be taken back."""

from __future__ import annotations

import difflib
import json
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ext.errors import Damaged, NoSuchRun, Refused
from nnunet_ext.plans import Plans

TESTS = Path(__file__).parents[1]
SHARED = TESTS.parents[1] / "shared/data/plans"
OLD = TESTS / "data/plans/old_2.0_hippocampus.json"
REAL = [path for path in sorted(SHARED.glob("*.json")) if not path.stem.endswith((".dataset", ".fingerprint"))]
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))

TYPED = """{
    "dataset_name": "Dataset001_CardiacSeg",
    "plans_name": "nnUNetPlans",
    "note": "von Hand, größer",
    "id": 9007199254740993, "nothing": NaN,
    "configurations": {
        "2d": {"batch_size": 12, "patch_size": [512, 512], "spacing": [1.0, 2.50]},
        "3d_lowres": {
            "data_identifier": "nnUNetPlans_3d_lowres",
            "batch_size": 2,
            "patch_size": [128, 128, 128], "batch_dice": false,
            "next_stage": "3d_cascade_fullres",
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {
                    "features_per_stage": [32, 64],
                    "kernel_sizes": [[3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [2, 2, 2]],
                    "norm_op_kwargs": {"eps": 1e-05, "affine": true}
                }
            }
        },
        "3d_cascade_fullres": {
            "inherits_from": "3d_lowres",
            "next_stage": null,
            "previous_stage": "3d_lowres"
        }
    }
}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / 'it\'s "préprocessed"'
    folder.mkdir()
    path = folder / "nnUNetPlans.json"
    path.write_text(TYPED, "utf-8")
    return path


@pytest.fixture
def plans(path: Path) -> Plans:
    return Plans.read(path)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".lock")}


def changed_lines(before: str, after: str) -> list[str]:
    return [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]


# reading


def test_a_plan_says_whose_it_is_and_what_it_holds(plans: Plans, path: Path) -> None:
    assert (plans.name, plans.dataset_name, plans.path) == ("nnUNetPlans", "Dataset001_CardiacSeg", path)
    assert plans.configurations == ("2d", "3d_lowres", "3d_cascade_fullres")
    with pytest.raises(FrozenInstanceError):
        plans.path = path.parent  # type: ignore[misc]


def test_a_configuration_has_what_it_inherits_and_what_it_overrides(plans: Plans) -> None:
    first, second = plans.configuration("3d_lowres"), plans.configuration("3d_cascade_fullres")
    assert first.next_stages == ("3d_cascade_fullres",)
    assert (second.next_stages, second.previous_stage) == ((), "3d_lowres")
    for configuration in (first, second):
        assert configuration.data_identifier == "nnUNetPlans_3d_lowres"
        assert (configuration.batch_size, configuration.patch_size) == (2, (128, 128, 128))
        assert configuration.dimension == 3
        assert configuration.batch_dice is False
        assert configuration.spacing is None
        assert str(configuration.network_class_name).endswith(".PlainConvUNet")
        assert configuration.features_per_stage == (32, 64)
        assert configuration.kernel_sizes == ((3, 3, 3), (3, 3, 3))
        assert configuration.strides == ((1, 1, 1), (2, 2, 2))


def test_what_a_plan_leaves_out_is_not_known_and_the_data_identifier_is_the_planners(plans: Plans) -> None:
    flat = plans.configuration("2d")
    assert flat.data_identifier == "nnUNetPlans_2d"
    assert flat.spacing == (1.0, 2.5)
    assert (flat.dimension, flat.batch_dice, flat.features_per_stage) == (2, None, None)
    assert (flat.network_class_name, flat.strides) == (None, None)


def test_an_old_plan_without_architecture_gets_the_network_that_nnunet_would_build() -> None:
    for name in ("3d_fullres", "3d_cascade_fullres"):
        configuration = Plans.read(OLD).configuration(name)
        assert configuration.batch_size == 9
        assert configuration.features_per_stage == (32, 64, 128, 256)
        assert configuration.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
        assert configuration.network_class_name == "dynamic_network_architectures.architectures.unet.PlainConvUNet"


def test_an_unknown_configuration_is_answered_with_the_right_ones(plans: Plans) -> None:
    with pytest.raises(NoSuchRun, match="no configuration 3d_lowers") as caught:
        plans.configuration("3d_lowers")
    assert "Did you mean 3d_lowres?" in caught.value.hint
    assert "2d, 3d_lowres, 3d_cascade_fullres" in caught.value.hint


@pytest.mark.parametrize(
    ("ancestors", "sentence"),
    [
        ({"a": {"inherits_from": "a"}}, "circle: a -> a"),
        ({"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}, "circle: a -> b -> a"),
        ({"a": {"inherits_from": "b"}}, "a inherits from 'b', which is not there"),
        ({"a": {"inherits_from": None}}, "a inherits from None, which is not there"),
        ({"a": {"patch_size": [1, 2]}}, "no usable batch_size, but None"),
        ({"a": {"batch_size": True, "patch_size": [1, 2]}}, "no usable batch_size, but True"),
        ({"a": {"batch_size": 2, "patch_size": [1, "2"]}}, "no usable patch_size"),
    ],
)
def test_a_configuration_that_nnunet_could_not_use_is_refused(
    path: Path, ancestors: dict[str, object], sentence: str
) -> None:
    path.write_text(json.dumps({"dataset_name": "d", "plans_name": "p", "configurations": ancestors}))
    with pytest.raises(Damaged) as caught:
        Plans.read(path).configuration("a")
    assert sentence in caught.value.sentence
    assert str(path) in caught.value.sentence


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"plans_name": "p", "dataset_name": "d"}', "has no configurations"),
        (b'{"configurations": {}, "dataset_name": "d"}', "has no plans_name"),
        (b'{"configurations": {"a": 1}, "plans_name": "p", "dataset_name": "d"}', "is not an object"),
        (b"[]", "has no configurations"),
        (TYPED.encode()[:200], "not readable JSON"),
        (b"", "not readable JSON"),
        (b"[" * 100_000, "not readable JSON"),
        (b"[" + b"1" * 5000 + b"]", "" if sys.version_info < (3, 11) else "not readable JSON"),
        (b"\xef\xbb\xbf" + TYPED.encode(), "byte order mark"),
        (b"\x80\x04\x95\x1e\x00\x00", "not text"),
    ],
)
def test_a_file_that_is_no_plan_is_damaged(path: Path, data: bytes, sentence: str) -> None:
    path.write_bytes(data)
    with pytest.raises(Damaged) as caught:
        Plans.read(path)
    assert sentence in caught.value.sentence
    assert str(path) in caught.value.sentence
    assert caught.value.hint


def test_a_missing_plan_comes_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(NoSuchRun, match="no plans file") as caught:
        Plans.read(tmp_path / "nnUNetPlans.json")
    assert "nnUNetv2_plan_and_preprocess -d" in caught.value.hint
    with pytest.raises(Damaged, match="is a folder"):
        Plans.read(tmp_path)


# asking


def test_a_plan_answers_jq_programs(plans: Plans) -> None:
    assert plans.ask(".configurations[].batch_size") == (12, 2, None)
    assert plans.ask(".configurations[$c].spacing[$n]", c="2d", n=1) == (2.5,)
    assert plans.ask("empty") == ()


def test_a_failing_program_is_refused_in_jqs_own_words(plans: Plans) -> None:
    for program, words in ((".[", "syntax error"), ('error("so")', "so"), (".note.x", "Cannot index")):
        with pytest.raises(Refused, match=words):
            plans.ask(program)


# patching


def test_a_patch_changes_one_value_and_no_other_byte(plans: Plans, path: Path) -> None:
    patched = plans.patch('.configurations["3d_lowres"].batch_size = $n', "24 GB", when=NOW, n=4)
    assert patched.configuration("3d_lowres").batch_size == 4
    assert path.read_bytes() == TYPED.replace('"batch_size": 2,', '"batch_size": 4,').encode()
    assert Plans.read(path) == patched
    assert plans.text == TYPED


def test_a_batch_size_is_patched_in_the_configuration_itself_never_in_its_parent(plans: Plans) -> None:
    assert plans.owner("3d_cascade_fullres", "batch_size") == "3d_lowres"
    patched = plans.patch(plans.batch_size_program("3d_cascade_fullres", 1), "8 GB", when=NOW)
    assert patched.configuration("3d_cascade_fullres").batch_size == 1
    assert patched.configuration("3d_lowres").batch_size == 2
    assert patched.owner("3d_cascade_fullres", "batch_size") == "3d_cascade_fullres"
    assert patched.owner("3d_cascade_fullres", "unheard_of") is None
    assert changed_lines(plans.text, patched.text) == [
        '-             "previous_stage": "3d_lowres"',
        '+             "previous_stage": "3d_lowres",',
        '+             "batch_size": 1',
    ]
    with pytest.raises(NoSuchRun):
        plans.batch_size_program("3d", 1)


def test_a_patch_is_recorded_with_program_arguments_values_time_and_reason(plans: Plans, path: Path) -> None:
    patched = plans.patch(".configurations[$c].spacing[1] = 3", "why not", when=NOW, c="2d")
    (line,) = path.with_name("nnUNetPlans.json.patches.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["program"] == ".configurations[$c].spacing[1] = 3"
    assert (record["args"], record["why"]) == ({"c": "2d"}, "why not")
    assert record["when"] == "2026-03-01T10:00:00+00:00"
    (edit,) = record["edits"]
    assert edit["path"] == ["configurations", "2d", "spacing", 1]
    assert (edit["before"], edit["after"]) == ("2.50", "3")
    (patch,) = patched.patches()
    assert (patch.why, patch.when, patch.args) == ("why not", NOW, (("c", "2d"),))


def test_the_first_original_is_kept_and_never_overwritten(plans: Plans, path: Path) -> None:
    plans.patch(".note = 1", "", when=NOW).patch(".note = 2", "", when=NOW).undo()
    assert path.with_name("nnUNetPlans.json.orig").read_text("utf-8") == TYPED


def test_a_patch_that_changes_nothing_writes_nothing(plans: Plans, path: Path) -> None:
    for program in (".", '.configurations["2d"].batch_size = 12.0', "to_entries | reverse | from_entries"):
        assert plans.patch(program, "", when=NOW) == plans
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


REFUSED = {
    ".[": "syntax error",
    "error": "failed",
    "empty": "yields nothing",
    "., .": "more than one",
    "range(infinite)": "more than one",
    "halt": "yields nothing",
    "1": "no plan",
    "[.]": "no plan",
    "{}": "no plan",
    "del(.plans_name)": "no plan",
    ".configurations = []": "no plan",
    '.configurations["2d"] = 3': "no plan",
    '.plans_name = "other"': "rename plans_name",
    '.dataset_name = "other"': "rename dataset_name",
    'del(.configurations["2d"])': "remove or rename configuration 2d",
    '.configurations |= (.["2D"] = .["2d"] | del(.["2d"]))': "remove or rename configuration 2d",
    '.configurations["2d"].batch_size = 0': "2d in .* unusable",
    '.configurations["2d"].batch_size = "4"': "2d in .* unusable",
    '.configurations["3d_lowres"].inherits_from = "3d_cascade_fullres"': "3d_lowres, 3d_cascade_fullres in",
}


@pytest.mark.parametrize("program", REFUSED)
def test_a_refused_program_changes_nothing(plans: Plans, path: Path, program: str) -> None:
    before = content(path.parent)
    with pytest.raises(Refused, match=REFUSED[program]):
        plans.patch(program, "", when=NOW)
    assert content(path.parent) == before


def test_a_new_configuration_may_be_added(plans: Plans) -> None:
    program = '.configurations["3d_bs4"] = {inherits_from: "3d_lowres", batch_size: 4}'
    assert plans.patch(program, "", when=NOW).configuration("3d_bs4").batch_size == 4


def test_a_configuration_that_was_broken_before_does_not_stop_a_patch(path: Path) -> None:
    path.write_text(TYPED.replace('"2d": {"batch_size": 12, ', '"2d": {'), "utf-8")
    plans = Plans.read(path).patch('.configurations["3d_lowres"].batch_size = 3', "", when=NOW)
    assert plans.configuration("3d_lowres").batch_size == 3


def test_a_file_changed_meanwhile_is_not_overwritten(plans: Plans, path: Path) -> None:
    path.write_text(TYPED.replace("12", "13"), "utf-8")
    before = content(path.parent)
    for change in (lambda: plans.patch(".note = 1", "", when=NOW), plans.undo):
        with pytest.raises(Refused, match="changed by somebody else"):
            change()
    assert content(path.parent) == before


def test_a_link_is_followed_and_the_mode_kept(plans: Plans, path: Path, tmp_path: Path) -> None:
    path.chmod(0o640)
    link = tmp_path / "nnUNetPlans.json"
    link.symlink_to(path)
    patched = Plans.read(link).patch(".note = 1", "", when=NOW)
    assert link.is_symlink()
    assert path.read_text("utf-8") == patched.text != plans.text
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert Plans.read(path).patches() == patched.patches() != ()
    assert Plans.read(path).undo().text == TYPED


# taking back

PROGRAMS = [
    ".note = null",
    "del(.id)",
    'del(.configurations["2d"].spacing, .dataset_note) | .configurations["2d"].patch_size = [1, 2, 3]',
    ".nothing = [1, {a: 2}] | .new = {b: []} | .newer = 1",
    'del(.configurations["3d_cascade_fullres"].next_stage) | .configurations["3d_lowres"].batch_size += 1',
    ".configurations[].architecture.arch_kwargs.norm_op_kwargs = {}",
]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_an_undo_restores_every_byte(path: Path, program: str, ending: str) -> None:
    text = json.dumps(json.loads(TYPED), indent=4).replace("\n", ending)
    path.write_bytes(text.encode())
    patched = Plans.read(path).patch(program, "", when=NOW)
    assert path.read_bytes() == patched.text.encode() != text.encode()
    restored = Plans.read(path).undo()
    assert path.read_bytes() == restored.text.encode() == text.encode()
    assert restored.patches() == ()


def test_undo_takes_patches_back_one_by_one(plans: Plans) -> None:
    first = plans.patch(".note = 1", "one", when=NOW)
    second = first.patch('.note = 2 | .configurations["2d"].batch_size = 3', "two", when=NOW)
    assert [patch.why for patch in second.patches()] == ["one", "two"]
    assert second.undo() == first
    assert [patch.why for patch in first.patches()] == ["one"]
    assert first.undo() == plans
    with pytest.raises(Refused, match=r"no patch of .* to undo"):
        plans.undo()


def test_undo_keeps_what_was_changed_elsewhere(plans: Plans, path: Path) -> None:
    patched = plans.patch('.configurations["3d_lowres"].batch_size = 4', "", when=NOW)
    by_hand = json.loads(patched.text) | {"note": "mine"}
    path.write_text(json.dumps(by_hand))
    assert json.loads(Plans.read(path).undo().text)["configurations"]["3d_lowres"]["batch_size"] == 2
    assert Plans.read(path).ask(".note") == ("mine",)


def test_undo_of_a_value_changed_since_is_refused_with_both_values(plans: Plans, path: Path) -> None:
    patched = plans.patch('.configurations["2d"].batch_size = 4', "", when=NOW)
    path.write_text(patched.text.replace('"batch_size": 4', '"batch_size": 6'), "utf-8")
    before = content(path.parent)
    sentence = r"configurations/2d/batch_size in .* is 6, but the patch to undo made it 4"
    with pytest.raises(Refused, match=sentence):
        Plans.read(path).undo()
    assert content(path.parent) == before


def test_a_damaged_record_is_said_and_stops_a_patch(plans: Plans, path: Path) -> None:
    patched = plans.patch(".note = 1", "", when=NOW)
    for line in ("{", "[1]", '{"program": "."}', '{"edits": 3}'):
        path.with_name("nnUNetPlans.json.patches.jsonl").write_text(line)
        before = content(path.parent)
        for use in (patched.patches, patched.undo, lambda: patched.patch(".note = 2", "", when=NOW)):
            with pytest.raises(Damaged, match="record of patches"):
                use()
        assert content(path.parent) == before


# kills and crowds

KILLED = """
import os, sys
from datetime import datetime, timezone
from pathlib import Path
from nnunet_ext import host
from nnunet_ext.plans import Plans

path, action, left, moment = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
replace = host.replace_durably

def dying(new, path):
    global left
    left -= 1
    if left == 0 and moment == "before":
        os._exit(9)
    replace(new, path)
    if left == 0:
        os._exit(9)

host.replace_durably = dying
plans = Plans.read(path)
if action == "patch":
    plans.patch(".note = 2 | del(.id)", "two", when=datetime.now(timezone.utc))
else:
    plans.undo()
"""


def killed(path: Path, action: str, step: int, moment: str) -> bool:
    argv = [sys.executable, "-c", KILLED, str(path), action, str(step), moment]
    code = subprocess.run(argv, check=False).returncode
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("action", ["patch", "undo"])
def test_a_kill_at_any_step_leaves_plans_and_record_in_agreement(
    plans: Plans, path: Path, action: str, step: int, moment: str
) -> None:
    one = plans.patch(".note = 1", "one", when=NOW)
    two = one.text
    if action == "undo":
        two = one.patch(".note = 2 | del(.id)", "two", when=NOW).text
    assert killed(path, action, step, moment)
    after = Plans.read(path)
    is_two = json.loads(after.text)["note"] == 2
    assert after.text == one.text or is_two
    assert two == one.text or after.text in (one.text, two)
    assert [patch.why for patch in after.patches()] == (["one", "two"] if is_two else ["one"])
    # the next patch repairs the record, and everything can be taken back
    third = after.patch('.note = "three"', "three", when=NOW)
    assert [patch.why for patch in third.patches()] == [p.why for p in after.patches()] + ["three"]
    while third.patches():
        third = third.undo()
    assert json.loads(third.text.replace("NaN", "0")) == json.loads(TYPED.replace("NaN", "0"))


def test_a_kill_before_the_very_first_patch_is_whole_leaves_the_plan(plans: Plans, path: Path) -> None:
    # first around the copy of the original, then after the record and before the plans
    for step, moment in ((1, "before"), (1, "after"), (1, "after"), (2, "before")):
        assert killed(path, "patch", step, moment)
        assert path.read_text("utf-8") == TYPED
        assert Plans.read(path).patches() == ()
    assert path.with_name("nnUNetPlans.json.orig").read_text("utf-8") == TYPED


def test_an_undo_killed_midway_and_repeated_takes_back_one_patch_only(plans: Plans, path: Path) -> None:
    one = plans.patch(".note = 1", "one", when=NOW)
    one.patch(".note = 2", "two", when=NOW)
    assert killed(path, "undo", 1, "after")
    assert Plans.read(path).undo().text == one.text
    assert [patch.why for patch in Plans.read(path).patches()] == ["one"]


CROWD = """
import sys
from datetime import datetime, timezone
from pathlib import Path
from nnunet_ext.errors import Refused
from nnunet_ext.plans import Plans

done = 0
while done < 5:
    try:
        Plans.read(Path(sys.argv[1])).patch(".[$key] += 1", "", when=datetime.now(timezone.utc), key=sys.argv[2])
        done += 1
    except Refused as refused:
        assert "changed by somebody else" in refused.sentence, refused
"""


def test_of_patches_made_at_the_same_time_none_is_lost(path: Path) -> None:
    crowd = [subprocess.Popen([sys.executable, "-c", CROWD, str(path), f"k{n}"]) for n in range(4)]
    assert [process.wait() for process in crowd] == [0] * 4
    plans = Plans.read(path)
    assert plans.ask("[.k0, .k1, .k2, .k3]") == ([5, 5, 5, 5],)
    assert len(plans.patches()) == 20


# any plan

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(st.characters(codec="utf-8"), max_size=5)
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        yield path
    else:
        for key, part in inner:
            yield from leaves(part, (*path, key))


@settings(deadline=None)
@given(st.data(), st.dictionaries(KEYS, VALUES, min_size=1, max_size=4), st.sampled_from([None, 1, 4, "\t"]))
def test_in_any_plan_one_value_is_patched_and_taken_back(
    data: st.DataObject, extra: dict[str, object], indent: int | str | None
) -> None:
    extra = {"x": 1, **extra}
    plan = {"dataset_name": "Dataset001_A", "plans_name": "p", "configurations": {}, "extra": extra}
    text = json.dumps(plan, indent=indent, ensure_ascii=data.draw(st.booleans()))
    place = data.draw(st.sampled_from(sorted(leaves(extra), key=str)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plans.json")
        path.write_bytes(text.encode())
        patched = Plans.read(path).patch("setpath($path; $new)", "", when=NOW, path=["extra", *place], new="<new>")
        holder: object = plan
        for step in ("extra", *place[:-1]):
            holder = holder[step]  # type: ignore[index]
        holder[place[-1]] = "<new>"  # type: ignore[index]
        assert patched.text == json.dumps(plan, indent=indent, ensure_ascii=text.isascii())
        assert patched.undo().text == text == path.read_text("utf-8")


# real plans


@pytest.mark.skipif(not REAL, reason="no real plans here")
@pytest.mark.parametrize("real", REAL, ids=lambda real: real.stem)
def test_a_batch_size_patch_changes_one_line_of_a_real_plan(real: Path, tmp_path: Path) -> None:
    path = tmp_path / "nnUNetPlans.json"
    path.write_bytes(real.read_bytes())
    plans = Plans.read(path)
    for name in plans.configurations:
        program = plans.batch_size_program(name, plans.configuration(name).batch_size + 1)
        patched = plans.patch(program, "", when=NOW)
        assert patched.configuration(name).batch_size == plans.configuration(name).batch_size + 1
        lines = changed_lines(plans.text, patched.text)
        own = plans.owner(name, "batch_size") == name
        assert [line[0] for line in lines if line[0] in "+-"] == (["-", "+"] if own else ["-", "+", "+"])
        for other in set(plans.configurations) - {name}:
            if patched.owner(other, "batch_size") != name:
                assert patched.configuration(other) == plans.configuration(other)
        assert patched.undo().text.encode() == real.read_bytes()


@pytest.mark.nnunet
@pytest.mark.parametrize("real", [OLD, *REAL], ids=lambda real: real.stem)
def test_every_configuration_is_what_nnunet_makes_of_it(real: Path) -> None:
    handler = pytest.importorskip("nnunetv2.utilities.plans_handling.plans_handler")
    plans, theirs = Plans.read(real), handler.PlansManager(str(real))
    for name in plans.configurations:
        ours = plans.configuration(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Detected old nnU-Net plans format"
            manager = theirs.get_configuration(name)
        kwargs = manager.network_arch_init_kwargs
        assert ours.batch_size == manager.batch_size
        assert list(ours.patch_size) == manager.patch_size
        assert list(ours.spacing or ()) == manager.spacing
        assert ours.data_identifier == manager.data_identifier
        assert ours.batch_dice == manager.batch_dice
        assert ours.previous_stage == manager.previous_stage_name
        assert list(ours.next_stages) == (manager.next_stage_names or [])
        assert ours.network_class_name == manager.network_arch_class_name
        assert list(ours.features_per_stage or ()) == kwargs["features_per_stage"]
        assert [list(row) for row in ours.kernel_sizes or ()] == kwargs["kernel_sizes"]
        assert [list(row) for row in ours.strides or ()] == kwargs["strides"]
