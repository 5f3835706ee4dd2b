"""`nnx doctor`: is this machine, or a run's dataset, fit to train, and how to mend what is not."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

import nnunet_ext
from nnunet_ext.checkup.finding import Finding, counted, is_fit
from nnunet_ext.errors import Exit, Usage
from nnunet_ext.host import HERE
from nnunet_ext.layout import ROOTS, Layout
from nnunet_ext.naming import Found, Name, find_run, run_of_words
from nnunet_ext.options import Voice, as_json, folder_options, layout_from, load_settings, run_words, speaking
from nnunet_ext.settings import DEFAULT, Value

if TYPE_CHECKING:
    from rich.console import Console

PROGRESS_EVERY_S = 2.0
TOPIC_WIDTH = max(map(len, ROOTS))


@click.command()
@run_words
@folder_options
@click.option("--env", is_flag=True, help="Print the export lines for plain nnU-Net commands, nnx's trainers included.")
@as_json
@speaking
@click.pass_obj
def doctor(voice: Voice, name: Name, folders: dict[str, str | None], env: bool, as_json: bool) -> int:
    """Check this machine; or, given a RUN (4 3d_fullres 0), the preprocessed dataset it trains on.

    A run's dataset can be checked before the run has begun. Exit code 0 means fit, 6 unfit; notes do not count.
    """
    known = load_settings(folders)
    findings: Iterable[Finding]
    if env:
        voice.answer(_export_lines(known))
        return Exit.DONE
    if name.words:
        findings = _dataset_findings(voice, name, layout_from(folders))
    elif name.trainer or name.plans:
        raise Usage("-tr and -p are parts of a run's name.", "For example: nnx doctor 4 3d_fullres 0 -tr nnUNetTrainer")
    else:
        findings = _machine_findings(voice, known)
    fit = _answer_json(voice, findings, known) if as_json else _print(voice, findings, {} if name.words else known)
    return Exit.DONE if fit else Exit.UNFIT


def _machine_findings(voice: Voice, known: dict[str, Value]) -> Iterable[Finding]:
    from nnunet_ext.checkup.machine_check import check_machine

    return check_machine(known, os.environ, voice.say)


def _dataset_findings(voice: Voice, name: Name, layout: Layout[Path]) -> Iterable[Finding]:
    from nnunet_ext.checkup.dataset_check import check_dataset

    found = _find(name, layout)
    return check_dataset(found.run, found.layout, _progress(voice))


def _find(name: Name, layout: Layout[Path]) -> Found:
    """The run that is meant; one named by three words need not have begun."""
    if len(name.words) != 3:
        return find_run(name, layout, HERE)
    return Found(run_of_words(name, layout, HERE), layout)


def _export_lines(known: dict[str, Value]) -> str:
    """For `eval "$(nnx doctor --env)"`: nnU-Net's folders as nnx sees them, and our trainers beside the user's own."""
    lines = {root: known[root.removeprefix("nnUNet_")].value for root in ROOTS}
    others = [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if folder]
    shelf = str(Path(nnunet_ext.__file__).with_name("shelf"))
    lines["nnUNet_extTrainer"] = os.pathsep.join(dict.fromkeys([*others, shelf]))
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in lines.items() if value is not None)


def _progress(voice: Voice) -> Callable[[str, int, int], None]:
    """Says how far it is, on stderr, when it takes long."""
    said = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= PROGRESS_EVERY_S:
            said = time.monotonic()
            voice.say(f"{what}: {done} of {total}")

    return progress


def _answer_json(voice: Voice, findings: Iterable[Finding], known: dict[str, Value]) -> bool:
    found = list(findings)
    voice.answer_json(
        {
            "fit": is_fit(found),
            "findings": [vars(finding) for finding in found],
            "settings": [{"name": name, "value": v.value, "origin": v.origin} for name, v in known.items()],
        }
    )
    return is_fit(found)


def _print(voice: Voice, findings: Iterable[Finding], known: dict[str, Value]) -> bool:
    """Each finding as it comes, then the settings and the verdict."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width
        console = Console(highlight=False, width=10_000)
    found = []
    for finding in findings:
        found.append(finding)
        if finding.level != "ok" or not voice.quiet:
            _print_finding(console, finding)
    if not voice.quiet:
        _print_settings(console, known)
    unfit = sum(finding.level == "unfit" for finding in found)
    notes = sum(finding.level == "note" for finding in found)
    verdict = f"unfit: {counted(unfit, 'finding')} to fix" if unfit else "fit"
    console.print(verdict + (f" ({counted(notes, 'note')})" if notes else ""), markup=False)
    return is_fit(found)


def _print_finding(console: Console, finding: Finding) -> None:
    """The sentence wraps in its column; a fix keeps its lines whole, so that it can be copied."""
    from rich.table import Table
    from rich.text import Text

    signs = {"ok": "✓", "note": "!", "unfit": "✗"} if console.encoding == "utf-8" else {"ok": "+", "unfit": "x"}
    style = {"ok": "green", "note": "yellow", "unfit": "bold red"}[finding.level]
    row = Table.grid(padding=(0, 1))
    row.add_column(width=1)
    row.add_column(width=TOPIC_WIDTH, no_wrap=True)
    row.add_column(overflow="fold")
    row.add_row(Text(signs.get(finding.level, "!"), style), Text(finding.topic), Text(finding.finding))
    console.print(row)
    for line in finding.fix.splitlines():
        console.print(Text(f"    {line}"), soft_wrap=True)


def _print_settings(console: Console, known: dict[str, Value]) -> None:
    """What was set and where; nnU-Net's folders are findings already."""
    from rich.padding import Padding
    from rich.text import Text

    folders = {root.removeprefix("nnUNet_") for root in ROOTS}
    others = {name: value for name, value in known.items() if name not in folders}
    for name, value in others.items():
        if value.origin != DEFAULT:
            console.print(Text(f"  {name:<{TOPIC_WIDTH}} {value.value} (from {value.origin})"), soft_wrap=True)
    unset = [name for name, value in others.items() if value.origin == DEFAULT]
    if unset:
        console.print(Padding(Text(f"at their defaults: {', '.join(unset)}"), (0, 0, 0, 2), expand=False))
