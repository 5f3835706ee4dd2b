"""Is a run's preprocessed dataset fit to train on: every file nnU-Net will open, looked at before it does."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from nnunet_ext.checkup.case_files import cases_of, ending_of, trouble_of
from nnunet_ext.checkup.checkpoint_check import check_checkpoint, existing_checkpoints
from nnunet_ext.checkup.finding import Finding, counted, note, ok, quoted, sentence, some, unfit
from nnunet_ext.checkup.inspection import last_words, own_child
from nnunet_ext.checkup.split_check import Used, judge_split
from nnunet_ext.configuration import Configuration
from nnunet_ext.dataset import Dataset, Split, read_dataset, read_splits
from nnunet_ext.errors import NnxError
from nnunet_ext.host import HERE
from nnunet_ext.layout import DATA_ENDINGS, Layout, case_files, is_junk
from nnunet_ext.plans import Plans
from nnunet_ext.run import Run

CASES_AT_ONCE = 250  # given to one child process
OPENING_PATIENCE_S = 600.0

Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


def check_dataset(run: Run, layout: Layout[Path], progress: Progress) -> Iterator[Finding]:
    """Every finding about the data of a run; the run need not have begun. Trouble with a file is a finding, too."""
    try:
        yield from _check(run, layout, progress)
    except NnxError as wrong:
        yield unfit("dataset", sentence(wrong.sentence), wrong.hint)
    except OSError as wrong:
        where = Path(wrong.filename or layout.preprocessed_dataset(run.dataset))
        yield unfit("dataset", f"{where} cannot be read ({wrong.strerror}).", f"ls -ld {quoted(where)}")


def has_blosc2() -> bool:
    """Whether the cases can be opened, too, and not only looked at."""
    return importlib.util.find_spec("blosc2") is not None


def judge_fingerprint(path: Path) -> Finding:
    """nnU-Net copies it when a training starts, and fails without it (nnUNetTrainer.on_train_start)."""
    trouble = "is not there" if not path.is_file() else ""
    try:
        json.loads(path.read_bytes()) if not trouble else None
    except OSError as wrong:
        trouble = f"cannot be read ({wrong.strerror})"
    except ValueError:
        trouble = "is no JSON"
    if trouble:
        return unfit("fingerprint", f"{path} {trouble}.", "Copy it from where the data was preprocessed.")
    return ok("fingerprint", f"{path.name} is there.")


def judge_junk(names: Sequence[str], folder: Path) -> Iterator[Finding]:
    """What macOS scatters: `.DS_Store` is one ending too many, `._case.b2nd` becomes a case."""
    junk = sorted(name for name in names if is_junk(name))
    if junk:
        remove = f"find {quoted(folder)} -maxdepth 1 -type f \\( -name '._*' -o -name .DS_Store \\) -delete"
        yield unfit("junk", f"macOS left {some(junk, 'file')} in {folder}, which nnU-Net stumbles over.", remove)


def judge_ending(names: Sequence[str], folder: Path, again: str) -> Finding:
    """infer_dataset_class asserts that all files but .pkl and .npy end alike."""
    clean = [name for name in names if not is_junk(name)]
    endings = ending_of(clean)
    known = [ending for ending in DATA_ENDINGS if ending.lstrip(".") in endings]
    if not known:
        return unfit("cases", f"{folder} holds no preprocessed cases.", again)
    if len(known) > 1:
        fix = "Move one kind into another folder; the .b2nd files are the newer kind."
        return unfit("cases", f"{folder} holds both .b2nd and .npz cases, and nnU-Net takes one kind.", fix)
    odd = sorted(name for name in clean if name.rsplit(".", 1)[-1] not in (known[0].lstrip("."), "pkl", "npy"))
    if odd:
        fix = "\n".join(f"rm {quoted(folder / name)}" for name in odd[:10])
        return unfit("cases", f"Besides {known[0]} files, {folder} holds {some(odd, 'file')}; nnU-Net refuses it.", fix)
    return ok("cases", f"{counted(len(cases_of(clean, known[0])), 'case')} in {folder}, all {known[0]}.")


def judge_files(topic: str, troubles: dict[str, str], total: int, fix: str) -> Finding:
    """`troubles`: file name -> what is wrong with it."""
    if not troubles:
        return ok(topic, f"All {total} files are whole.")
    shown = "; ".join(f"{name} {words}" for name, words in list(troubles.items())[:3])
    more = f"; and {len(troubles) - 3} more" if len(troubles) > 3 else ""
    return unfit(topic, f"{len(troubles)} of {total} files are not as they should be: {shown}{more}.", fix)


def judge_gt(used: Used, there: Collection[str], file_ending: str, folder: Path, raw: Path) -> Finding:
    """The final validation after the last epoch reads those of the validation cases, an evaluation over all folds
    those of all cases."""
    lacking = [case for case in used.all if f"{case}{file_ending}" not in there]
    if not lacking:
        return ok("ground truth", f"Segmentations of all {len(used.all)} cases are there.")
    words = f"{folder} lacks {some(lacking, 'case')}"
    fix = f"Copy them from the label folder in {raw}."
    if {*lacking} & {*used.val}:
        return unfit("ground truth", f"{words}; the validation after the last epoch would fail.", fix)
    return note("ground truth", f"{words}, which this fold does not need.", fix)


def _check(run: Run, layout: Layout[Path], progress: Progress) -> Iterator[Finding]:
    folder = layout.preprocessed_dataset(run.dataset)
    if not folder.is_dir():
        again = f"nnUNetv2_plan_and_preprocess -d {run.dataset_id} -c {run.configuration}"
        yield unfit("dataset", f"{folder} does not exist.", again)
        return
    dataset = read_dataset(layout.dataset_json(run.dataset))
    configuration = Plans.read(layout.plans_file(run.dataset, run.plans)).configuration(run.configuration)
    about = f"{counted(dataset.channels, 'channel')}, {counted(dataset.heads, 'output')}; plans {run.plans}"
    yield ok("dataset", f"{run.dataset}: {about}.")
    yield judge_fingerprint(layout.fingerprint(run.dataset))
    splits = read_splits(layout.splits(run.dataset))
    yield from _check_cases(run, layout, configuration, dataset, splits, progress)
    yield from check_checkpoint(run, layout, configuration, dataset)


def _check_cases(
    run: Run,
    layout: Layout[Path],
    configuration: Configuration,
    dataset: Dataset,
    splits: Sequence[Split] | None,
    progress: Progress,
) -> Iterator[Finding]:
    folder = layout.data_folder(run.dataset, configuration.data_identifier)
    again = f"nnUNetv2_preprocess -d {run.dataset_id} -plans_name {run.plans} -c {run.configuration}"
    if not folder.is_dir():
        yield unfit("cases", f"{folder} does not exist: {run.configuration} is not preprocessed.", again)
        return
    names = _files_in(folder)
    yield from judge_junk(names, folder)
    yield judge_ending(names, folder, again)
    ending = next((ending for ending in DATA_ENDINGS if cases_of(names, ending)), None)
    if ending is None:
        return
    cases = cases_of(names, ending)
    used, findings = judge_split(run.fold, splits, cases, bool(existing_checkpoints(run, layout)))
    yield from findings
    present = sorted({*used.all} & {*cases})
    yield _check_files(folder, present, ending, dataset.channels, again, progress)
    yield _check_gt(run, layout, used, dataset.file_ending)
    if configuration.previous_stage:
        yield _check_previous_stage(run, layout, configuration.previous_stage, present, ending)


def _check_files(
    folder: Path, cases: Sequence[str], ending: str, channels: int, again: str, progress: Progress
) -> Finding:
    """Whole by their own account, and, where blosc2 is installed, to be opened."""
    troubles: dict[str, str] = {}
    for number, case in enumerate(cases):
        progress("looking at files", number, len(cases))
        told = {name: trouble_of(folder / name) for name in case_files(case, ending)}
        troubles |= {name: words for name, words in told.items() if words}
    whole = [case for case in cases if not {*case_files(case, ending)} & {*troubles}]
    total = len(cases) * len(case_files("", ending))
    fix = f"Copy them again from where they are whole, or preprocess again:\n{again}"
    if ending == DATA_ENDINGS[0] and has_blosc2():
        try:
            troubles |= _open(folder, whole, channels, progress)
        except NnxError as wrong:
            return unfit("files", sentence(wrong.sentence), "pip install --upgrade --force-reinstall blosc2")
    return judge_files("files", troubles, total, fix)


def _open(folder: Path, cases: Sequence[str], channels: int, progress: Progress) -> dict[str, str]:
    """What blosc2 says of the cases' images and segmentations, asked in child processes."""
    troubles: dict[str, str] = {}
    for start in range(0, len(cases), CASES_AT_ONCE):
        progress("opening cases", start, len(cases))
        pairs = [case_files(case, DATA_ENDINGS[0])[:2] for case in cases[start : start + CASES_AT_ONCE]]
        asked = json.dumps({"folder": str(folder), "channels": channels, "cases": pairs}).encode()
        done = HERE.run(own_child("nnunet_ext.trainers.open_cases"), stdin=asked, timeout_s=OPENING_PATIENCE_S)
        try:
            troubles |= json.loads(done.stdout)
        except ValueError as wrong:
            words = last_words(done.code, done.stderr)
            raise NnxError(f"blosc2 could not be asked to open the cases: {words}.") from wrong
    return troubles


def _check_gt(run: Run, layout: Layout[Path], used: Used, file_ending: str) -> Finding:
    folder = layout.gt_segmentations(run.dataset)
    there = _files_in(folder) if folder.is_dir() else []
    return judge_gt(used, there, file_ending, folder, layout.raw_dataset(run.dataset))


def _check_previous_stage(run: Run, layout: Layout[Path], stage: str, cases: Sequence[str], ending: str) -> Finding:
    """A cascade's second stage reads the first stage's prediction of every case, those of all folds
    (load_case in nnunetv2/training/dataloading/nnunet_dataset.py)."""
    folder = layout.previous_stage_predictions(run, stage)
    first = Run(run.dataset, stage, run.fold, run.trainer, run.plans)
    told = {case: trouble_of(folder / f"{case}{ending}") for case in cases}
    troubles = {case: words for case, words in told.items() if words}
    if not troubles:
        return ok("previous stage", f"{stage} predicted all {len(cases)} cases.")
    case, words = next(iter(troubles.items()))
    found = f"{len(troubles)} of {len(cases)} predictions of {stage} in {folder} are unusable: {case} {words}"
    fix = f"Finish {stage} in all folds first, its final validation included: nnUNetv2_train {' '.join(first.words())}"
    return unfit("previous stage", f"{found}{' ...' if len(troubles) > 1 else ''}.", fix)


def _files_in(folder: Path) -> list[str]:
    return [entry.name for entry in HERE.list(folder) if entry.kind == "file"]
