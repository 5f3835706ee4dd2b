"""Which run the user means: dataset, configuration and fold, a fold folder's path, or nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.errors import NoSuchRun, Usage
from nnunet_ext.host import Host
from nnunet_ext.layout import ROOTS, Layout, layout_of_fold_folder, run_of_fold_folder
from nnunet_ext.run import DEFAULT_PLANS, DEFAULT_TRAINER, Run, dataset_id, parse_fold

HOW = "Name a run as DATASET CONFIGURATION FOLD (1 3d_fullres 0) or by the path of its fold folder."


@dataclass(frozen=True)
class Name:
    """What was typed: the words and the options -tr and -p."""

    words: tuple[str, ...]
    trainer: str | None = None
    plans: str | None = None


@dataclass(frozen=True)
class Found:
    """A run and the layout it lies in (a path may lead outside nnUNet_results)."""

    run: Run
    layout: Layout[Path]


def find_run(name: Name, layout: Layout[Path], host: Host) -> Found:
    """The run that is meant; its fold folder exists. Raises NoSuchRun with the candidates, Usage for other words."""
    if len(name.words) == 1:
        return _by_path(Path(name.words[0]), layout, host)
    if len(name.words) == 3:
        run = run_of_words(name, layout, host)
        if host.stat(layout.fold_folder(run)) is None:
            raise _no_such_run(run, list(layout.runs(host)))
        return Found(run, layout)
    if name.words:
        raise _unnamed(name)
    matching = [
        run for run in layout.runs(host) if name.trainer in (None, run.trainer) and name.plans in (None, run.plans)
    ]
    return Found(the_only(matching, f"under {layout.results}"), layout)


def run_of_words(name: Name, layout: Layout[Path], host: Host) -> Run:
    """The run that DATASET CONFIGURATION FOLD name, whether it has begun or not. Raises NoSuchRun, Usage."""
    if len(name.words) != 3:
        raise _unnamed(name)
    dataset, configuration, fold = name.words
    trainer, plans = name.trainer or DEFAULT_TRAINER, name.plans or DEFAULT_PLANS
    return Run(find_dataset(dataset, layout, host), configuration, parse_fold(fold), trainer, plans)


def the_only(runs: Sequence[Run], where: str) -> Run:
    """The run when there is one; raises NoSuchRun listing the candidates otherwise."""
    if len(runs) == 1:
        return runs[0]
    if not runs:
        raise NoSuchRun(f"There is no run {where}.", f"{HOW} Is nnUNet_results set to the right folder?")
    raise NoSuchRun(f"{len(runs)} runs lie {where}; say which.", _candidates(runs))


def find_dataset(word: str, layout: Layout[Path], host: Host) -> str:
    """The dataset's full name from its number or name, as nnU-Net looks it up. Raises NoSuchRun."""
    names = layout.datasets(host)
    if word in names:
        return word
    matching = [name for name in names if word.isascii() and word.isdigit() and dataset_id(name) == int(word)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise NoSuchRun(f"Dataset {word} is not unique.", f"Rename all but one: {', '.join(matching)}")
    places = ", ".join(f"{root}={folder}" for root, folder in zip(ROOTS, _roots(layout), strict=True))
    raise NoSuchRun(f"There is no dataset '{word}'.", near(word, names) or f"Looked in {places}.")


def near(word: str, names: Iterable[str]) -> str:
    """A hint with the names that are close to `word`, else all of them; empty when there are none."""
    known = list(dict.fromkeys(names))
    lowered = {name.lower(): name for name in known}
    close = [lowered[match] for match in difflib.get_close_matches(word.lower(), lowered, n=3, cutoff=0.6)]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There is: {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}." if known else ""


def _unnamed(name: Name) -> Usage:
    return Usage(f"'{' '.join(name.words)}' does not name a run.", HOW)


def _by_path(path: Path, layout: Layout[Path], host: Host) -> Found:
    folder = path.expanduser().absolute()
    run = run_of_fold_folder(folder)
    if host.stat(folder) is None:
        looks_like_a_path = "/" in str(path) or run is not None
        raise (NoSuchRun(f"There is no folder {path}.", HOW) if looks_like_a_path else _unnamed(Name((str(path),))))
    if run is None:
        raise NoSuchRun(
            f"{path} is not a fold folder.",
            "A fold folder is .../DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION/fold_N.",
        )
    return Found(run, layout_of_fold_folder(folder, layout))


def _no_such_run(run: Run, known: Sequence[Run]) -> NoSuchRun:
    """The candidates are the dataset's runs that differ in the fewest words from what was typed."""
    siblings = [other for other in known if other.dataset == run.dataset]
    typed = " ".join(run.words())
    ranked = sorted(siblings, key=lambda other: -difflib.SequenceMatcher(None, typed, " ".join(other.words())).ratio())
    sentence = f"There is no run {run}."
    return NoSuchRun(sentence, _candidates(ranked) if ranked else f"{run.dataset} has no runs yet. See: nnx runs")


def _candidates(runs: Sequence[Run]) -> str:
    shown = [f"  {' '.join(run.words())}" for run in runs[:10]]
    more = [f"  ... and {len(runs) - 10} more: nnx runs"] if len(runs) > 10 else []
    return "\n".join(["One of:", *shown, *more])


def _roots(layout: Layout[Path]) -> tuple[Path, Path, Path]:
    return layout.raw, layout.preprocessed, layout.results
