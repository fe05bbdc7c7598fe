"""What a benchmark doubts of its own figures, as a panel of the page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from ser_fl.report.labels import labels_of
from ser_fl.report.runs import RunRecords


def doubts_panel(runs: Sequence[RunRecords]) -> Iterator[str]:
    """A box for each run that made checks: how many passed, and each doubt in words."""
    examined = [
        (label, run.sanity_report) for label, run in zip(labels_of(runs), runs, strict=True) if run.sanity_report
    ]
    if not examined:
        return
    yield "<h3>Can these figures be believed?</h3>"
    for label, found in examined:
        kind = "fails" if found.failed else "hint" if found.hinted else "passed"
        yield f'<div class="doubts {kind}"><p><strong>{_html(label)}</strong>: {_html(found.headline)}.</p>'
        if found.doubts:
            yield "<ul>"
            for doubt in found.doubts:
                yield f"<li><strong>{doubt.severity}: {_html(doubt.check)}.</strong> {_html(doubt.words)}</li>"
            yield "</ul>"
        if found.passed:
            yield f'<p class="note">Passed: {_html("; ".join(found.passed))}.</p>'
        for name, reason in found.not_checked.items():
            yield f'<p class="note">Not checked: {_html(name)} ({_html(reason)}).</p>'
        yield "</div>"


def _html(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
