"""The report's pages: figures laid out as text, then drawn as a PDF with tables and a chart by ReportLab.

``lay_out`` decides what is said, ``render`` how it looks. The PDF holds no time of its own making, so the same figures make
the same bytes, and a second attempt of a job replaces the first one's file by an equal one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from reportlab.graphics.charts.barcharts import VerticalBarChart
from reportlab.graphics.charts.legends import Legend
from reportlab.graphics.shapes import Drawing
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.lib.units import mm
from reportlab.platypus import Flowable, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from actors.figures import HOURLY_UP_TO, Bucket, Figures

_GOOD = colors.HexColor("#2f7d4f")
_BAD = colors.HexColor("#b3362b")
_RULE = colors.HexColor("#c9ced6")
_HEAD = colors.HexColor("#eef1f5")
_MARGIN = 20 * mm
_WIDTH = A4[0] - 2 * _MARGIN
#: Characters of a name that fit into the widest column.
_NAME_LENGTH = 44


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One titled table; the first row is its head. ``empty`` stands in its place when there are no other rows."""

    title: str
    rows: list[list[str]]
    empty: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """What the report says, as text; ``buckets`` is what its chart shows."""

    title: str
    period: str
    sections: list[Section]
    buckets: list[Bucket]
    bucket_format: str


def lay_out(figures: Figures) -> Pages:
    """Turn figures into the report's texts and tables."""
    ended = figures.completed + figures.failures
    rate = f"{figures.failures / ended:.1%}" if ended else "-"
    summary = [
        ["Created", "Completed", "Failed attempts", "Dead", "Failure rate"],
        [f"{figures.created:,}", f"{figures.completed:,}", f"{figures.failures:,}", f"{figures.dead:,}", rate],
    ]
    actors = [
        [
            _name(a.actor),
            *(f"{count:,}" for count in (a.completed, a.failures, a.dead)),
            f"{a.failure_rate:.1%}",
            *(_seconds(seconds) for seconds in (a.mean_seconds, a.p95_seconds)),
        ]
        for a in figures.actors
    ]
    return Pages(
        title="Background jobs",
        period=f"{figures.since:%Y-%m-%d %H:%M} to {figures.until:%Y-%m-%d %H:%M} UTC",
        sections=[
            Section(title="Summary", rows=summary, empty=""),
            Section(
                title="Actors",
                rows=[["Actor", "Completed", "Failed", "Dead", "Failure rate", "Mean", "95 %"], *actors],
                empty="No job ended in this period.",
            ),
            Section(
                title="Created, by queue and state now",
                rows=[["Queue", "State", "Jobs"], *([_name(s.queue), s.state, f"{s.jobs:,}"] for s in figures.states)],
                empty="No job was created in this period.",
            ),
            Section(
                title="Slowest completed jobs",
                rows=[["Actor", "Job", "Seconds"], *([_name(s.actor), s.job_id, _seconds(s.seconds)] for s in figures.slowest)],
                empty="No job completed in this period.",
            ),
        ],
        buckets=figures.buckets,
        bucket_format="%H:%M" if figures.until - figures.since <= HOURLY_UP_TO else "%m-%d",
    )


def render(pages: Pages) -> bytes:
    """Draw the pages as a PDF."""
    styles = getSampleStyleSheet()
    story: list[Flowable] = [Paragraph(pages.title, styles["Title"]), Paragraph(pages.period, styles["Normal"])]
    for number, section in enumerate(pages.sections):
        story += [Spacer(0, 6 * mm), Paragraph(section.title, styles["Heading2"])]
        story.append(_table(section.rows) if len(section.rows) > 1 else Paragraph(section.empty, styles["Normal"]))
        if number == 0 and pages.buckets:
            story += [Spacer(0, 6 * mm), Paragraph("Throughput", styles["Heading2"]), _chart(pages)]
    file = io.BytesIO()
    # invariant: no time of making and no random id within the file.
    document = SimpleDocTemplate(
        file,
        pagesize=A4,
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=_MARGIN,
        bottomMargin=_MARGIN,
        title=pages.title,
        author="Switchyard",
        invariant=1,
    )
    document.build(story)
    return file.getvalue()


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """A table as wide as the page; its head is repeated on every page that it covers."""
    others = len(rows[0]) - 1
    # The first column holds names, the others mostly numbers; a job's id needs room too.
    widths = [_WIDTH * 0.34] + [_WIDTH * 0.66 / others] * others
    if rows[0][1] == "Job":
        widths = [_WIDTH * 0.34, _WIDTH * 0.48, _WIDTH * 0.18]
    style = TableStyle(
        [
            ("BACKGROUND", (0, 0), (-1, 0), _HEAD),
            ("FONTNAME", (0, 0), (-1, 0), "Helvetica-Bold"),
            ("FONTSIZE", (0, 0), (-1, -1), 8),
            ("LINEBELOW", (0, 0), (-1, -1), 0.25, _RULE),
            ("ALIGN", (1, 0), (-1, -1), "RIGHT"),
        ]
    )
    return Table([list(row) for row in rows], colWidths=widths, style=style, repeatRows=1)


def _chart(pages: Pages) -> Drawing:
    """Completed jobs and failed attempts as bars side by side, one pair a bucket."""
    drawing = Drawing(_WIDTH, 170)
    chart = VerticalBarChart()
    # In whole points, as the stubs have it.
    chart.x, chart.y, chart.width, chart.height = 34, 34, int(_WIDTH) - 40, 114
    chart.data = [[b.completed for b in pages.buckets], [b.failures for b in pages.buckets]]
    # At most a dozen labels, or they run into each other.
    step = -(-len(pages.buckets) // 12)
    labels = [b.start.strftime(pages.bucket_format) for b in pages.buckets]
    chart.categoryAxis.categoryNames = [label if n % step == 0 else "" for n, label in enumerate(labels)]
    chart.categoryAxis.labels.fontSize = chart.valueAxis.labels.fontSize = 7
    chart.valueAxis.valueMin = 0
    chart.valueAxis.labelTextFormat = "%d"
    chart.bars[0].fillColor, chart.bars[1].fillColor = _GOOD, _BAD
    chart.bars.strokeColor = None
    legend = Legend()
    legend.x, legend.y, legend.alignment, legend.fontSize = 34, 166, "right", 7
    legend.columnMaximum, legend.deltax = 1, 110
    legend.colorNamePairs = [(_GOOD, "completed jobs"), (_BAD, "failed attempts")]
    drawing.add(chart)
    drawing.add(legend)
    return drawing


def _name(text: str) -> str:
    """A name in the characters that the standard PDF fonts have, short enough for its column."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    return text if len(text) <= _NAME_LENGTH else text[: _NAME_LENGTH - 3] + "..."


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f} s"
