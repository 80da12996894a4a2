"""The table of prefetch: what each value means for a few uneven tasks, and for many short ones."""

from __future__ import annotations

from collections.abc import Sequence

from drawing.words import Run


def table(rows: Sequence[tuple[Run, Run]]) -> str:
    """A line for each prefetch: its run of uneven tasks, and its run of short ones. As Markdown has tables."""
    few, many = rows[0]
    cells = [("Prefetch", f"{tasks(few)}, uneven", f"{tasks(many)} that do nothing")]
    cells.append(("---", "---", "---"))
    for uneven, short in rows:
        rate = sum(short.measured.counts) / short.measured.makespan
        makespan = f"{uneven.seconds(uneven.measured.makespan)}, {uneven.ratio:.2f} times list scheduling"
        cells.append((str(uneven.prefetch or "unlimited"), makespan, f"{rate:,.0f} tasks/s"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(f"| {line} |" for line in lines)


def tasks(run: Run) -> str:
    return f"{sum(run.measured.counts):,} tasks"
