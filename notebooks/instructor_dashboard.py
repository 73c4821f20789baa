# %% [markdown]
# # Lab: the instructor's dashboard
#
# **Goal: after a grading run, know in five minutes which part to talk about in the next lecture, whom to talk to before it, and
# whether a grade would survive being given again.**
#
# about 10 minutes to read, half a minute to run · no points · needs a graded course · for instructors
#
# ## Why first
#
# `python -m autograder grade` ends with a table: fine for eight students, useless for eight hundred. A list of scores cannot tell
# "thirty people made the same mistake" (your explanation was wrong) from "thirty people made thirty mistakes" (the part is hard),
# nor someone who has not begun from someone who has been stuck for a week. The judges know, because they compare every wrong
# answer with known misconceptions. Afterwards you can
#
# 1. see the distribution of scores, and the parts that separate the class;
# 2. name the commonest mistakes in the judges' own sentences;
# 3. find those who are stuck on what most have solved;
# 4. grade one submission again with other hidden cases, without touching the gradebook.
#
# Scores come from nbgrader's gradebook, so manual grades and late penalties are in them; verdicts and messages from the graded
# notebooks. Names are hidden until you untick the box.
#
# Run all cells (*Run*, *Run All Cells*). Code that only draws is folded: click the bar beside `•••` to read it.

# %%
import textwrap
from collections import Counter

from matplotlib.patches import Patch

from autograder import gradebook, insight
from autograder.course import Course
from autograder.exam import fresh_seed
from autograder.report import graded_rows, summaries
from puzzles import catalog
from puzzles.explore import choice, explore, slider, tick
from puzzles.plots import BLACK, BLUE, GREEN, GREY, ORANGE, SKY, picture
from puzzles.show import LOOKS

# %% [markdown]
# Which course: a folder as nbgrader lays it out, relative to the repository. `make demo` makes `demo`; `.` is the repository
# itself. If nothing is graded there, a sample class of one puzzle is graded now, in a temporary folder.

# %% tags=["parameters"]
COURSE = "demo"

# %%
FACES = {"passed": "#b7e3c9", "wrong": "#f5d9a8", "crashed": "#f5d9a8", "unsolved": "white", "missing": "#d8dce0"}
HATCHES = {"passed": "", "wrong": "", "crashed": "xx", "unsolved": "", "missing": "///"}


def find_course(name: str) -> Course:
    root = catalog.ROOT / name
    if (root / "source").is_dir():
        course = Course(root)
        if any(graded_rows(course, assignment) for assignment in course.assignments()):
            return course
    print(f"Nothing is graded in {name}: grading a sample class.")
    return insight.sample_class()


course = find_course(COURSE)
rows_of = {name: rows for name in course.assignments() if (rows := graded_rows(course, name))}
scores_of = {name: gradebook.scores(course, name) for name in rows_of}
alias = insight.aliases(row.submission.student for rows in rows_of.values() for row in rows)
print(f"{len(alias)} students, {sum(map(len, rows_of.values()))} graded submissions of {len(rows_of)} puzzles.")


def shown(student: str, hidden: bool) -> str:
    return alias[student] if hidden else student


def titles(assignment: str) -> list[str]:
    return [part.title for part in catalog.puzzle(assignment).parts]


# %% [markdown]
# ## 1 · Scores, and the parts that separate the class
#
# Left: how many students have which score. Right: the parts, the hardest on top, with the share of the class that has them. A part
# is earned whole, so this *is* the distribution of scores by part. The whiskers say how far the share could be off by chance
# alone in a class of this size (one standard error): in a class of eight, do not read too much into one bar.


# %% tags=["drawing"]
def draw_scores(assignment: str, bins: int) -> None:
    rows, scores = rows_of[assignment], scores_of[assignment]
    totals = [entry["score"] for entry in scores.values()]
    parts = sorted(summaries([row.result for row in rows]), key=lambda part: part.share)
    mean = sum(totals) / len(totals)
    middle = sorted(totals)[len(totals) // 2]
    alt = f"Left: histogram of {len(totals)} scores, mean {mean:.0f}. Right: share passed by part, from {parts[0].title} {parts[0].share:.0%}."
    size = (13, 1.6 + 0.32 * len(parts))
    with picture(catalog.puzzle(assignment).title, alt, columns=2, size=size) as p:
        left, right = p.axes
        left.hist(totals, bins=bins, range=(0, 100), color=SKY, edgecolor=BLACK)
        left.axvline(mean, color=BLACK, linestyle="--", label=f"mean {mean:.0f}")
        left.axvline(middle, color=BLACK, linestyle=":", label=f"median {middle:g}")
        left.set(xlabel="score (points)", ylabel="students", xlim=(0, 100))
        left.legend(frameon=False)
        names = [textwrap.shorten(part.title, 40, placeholder=" …") for part in parts]
        shares = [part.share for part in parts]
        chance = [(share * (1 - share) / part.total) ** 0.5 for share, part in zip(shares, parts, strict=True)]
        right.barh(names, shares, color=BLUE, edgecolor=BLACK, xerr=chance, ecolor=GREY, capsize=3)
        for row, part in enumerate(parts):
            right.text(1.03, row, f"{part.passed} of {part.total}", va="center", fontsize=9)
        right.set(xlabel="share of the class that has the part", xlim=(0, 1.2))
        right.invert_yaxis()
        late = sum(entry["late_submission_penalty"] > 0 for entry in scores.values())
        manual = sum(entry["needs_manual_grade"] > 0 for entry in scores.values())
        p.caption = (
            f"{len(totals)} scores, mean {mean:.1f}, median {middle:g}. Hardest: {parts[0].title} ({parts[0].share:.0%}). "
            f"{late} with a late penalty, {manual} waiting for a grade by hand."
        )


# %%
explore(draw_scores, assignment=choice("puzzle", list(rows_of)), bins=slider("bins", 2, 20, 10))

# %% [markdown]
# ## 2 · Who has what
#
# A row is a student, best first; a column a part, easiest first. Sorted like this a healthy class is a staircase. A hole **inside**
# the staircase is someone who missed something easy: a good question for office hours. A column of ✗ in good rows is a
# part whose text misleads.


# %% tags=["drawing"]
def draw_map(assignment: str, hidden: bool) -> None:
    rows = sorted(rows_of[assignment], key=lambda row: -row.result.score)[:40]
    parts = sorted(summaries([row.result for row in rows_of[assignment]]), key=lambda part: -part.share)
    counts = Counter(verdict.status for row in rows for verdict in row.result.verdicts)
    told = ", ".join(f"{count} {LOOKS[status][1]}" for status, count in counts.most_common())
    alt = f"A grid of {len(rows)} students by {len(parts)} parts with a symbol in each cell: {told}."
    with picture("Students by parts", alt, size=(12, 2.6 + 0.32 * len(rows))) as p:
        axes = p.axes[0]
        for y, row in enumerate(rows):
            by_title = {verdict.title: verdict for verdict in row.result.verdicts}
            for x, part in enumerate(parts):
                status = by_title[part.title].status
                axes.barh(
                    y,
                    1,
                    left=x - 0.5,
                    height=1,
                    color=FACES[status],
                    edgecolor=GREY,
                    hatch=HATCHES[status],
                    linewidth=0.6,
                )
                axes.text(x, y, LOOKS[status][0], ha="center", va="center")
        axes.set_yticks(range(len(rows)), [f"{shown(r.submission.student, hidden)}, {r.result.score:g}" for r in rows])
        axes.set_xticks(range(len(parts)), [textwrap.fill(part.title, 16) for part in parts], fontsize=8)
        axes.set(
            xlabel="part (easiest first)",
            ylabel="student, points",
            xlim=(-0.5, len(parts) - 0.5),
            ylim=(len(rows) - 0.5, -0.5),
        )
        legend = [
            Patch(
                facecolor=FACES[status],
                edgecolor=GREY,
                hatch=HATCHES[status],
                label=f"{LOOKS[status][0]} {LOOKS[status][1]}",
            )
            for status in counts
        ]
        axes.legend(handles=legend, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        p.caption = f"{len(rows)} of {len(rows_of[assignment])} students shown: {told}."


# %%
explore(draw_map, assignment=choice("puzzle", list(rows_of)), hidden=tick("hide names", True))

# %% [markdown]
# ## 3 · The commonest mistakes
#
# Where a judge recognised a misconception, its sentence; elsewhere the status in a word. A long bar with a sentence is the topic of
# the next lecture. A long bar that says "not yet right" is a misconception nobody has described yet: look at two of those
# submissions, and add it to the judge's `mistakes`.


# %% tags=["drawing"]
def draw_mistakes(assignment: str, how_many: int, only_recognised: bool, hidden: bool) -> None:
    found = insight.mistakes(rows_of[assignment])
    plain = {word for _, word, _ in LOOKS.values()}
    if only_recognised:
        found = [mistake for mistake in found if mistake.reason not in plain]
    found = found[:how_many]
    if not found:
        print("No such mistakes: everyone has everything, or nothing was recognised.")
        return
    alt = f"Bars of the {len(found)} commonest reasons for lost points; the first, {found[0].reason}, {len(found[0].students)} times."
    with picture("Why points were lost", alt, size=(13, 1.2 + 0.62 * len(found))) as p:
        axes = p.axes[0]
        labels = [textwrap.fill(f"{mistake.part}: {mistake.reason}", 70, max_lines=3) for mistake in found]
        colours = [GREY if mistake.reason in plain else ORANGE for mistake in found]
        hatches = ["" if mistake.reason in plain else "//" for mistake in found]
        bars = axes.barh(
            range(len(found)), [len(m.students) for m in found], color=colours, edgecolor=BLACK, hatch=hatches
        )
        axes.bar_label(bars, [len(mistake.students) for mistake in found], padding=3)
        axes.set_yticks(range(len(found)), labels, fontsize=8)
        axes.set(xlabel="students", xlim=(0, 1.15 * max(len(mistake.students) for mistake in found)))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.invert_yaxis()
        legend = [
            Patch(facecolor=ORANGE, edgecolor=BLACK, hatch="//", label="recognised"),
            Patch(facecolor=GREY, label="not"),
        ]
        axes.legend(handles=legend, frameon=False, loc="lower right")
        who = ", ".join(sorted(shown(student, hidden) for student in found[0].students))
        p.caption = f"The commonest, {len(found[0].students)} students ({who}): {found[0].reason}"


# %%
explore(
    draw_mistakes,
    assignment=choice("puzzle", list(rows_of)),
    how_many=slider("how many", 1, 20, 8),
    only_recognised=tick("only recognised ones", True),
    hidden=tick("hide names", True),
)

# %% [markdown]
# ## 4 · Who is stuck
#
# Listed are students who have handed in answers and lack a part that more than half of the class has. Someone with an untouched
# notebook is not stuck, only late, and is left out. Each line ends in what the judge said about the first such part.


# %% tags=["drawing"]
def draw_stuck(assignment: str, hidden: bool) -> None:
    found = insight.stuck(rows_of[assignment])[:20]
    if not found:
        print("Nobody is stuck on something that most have solved.")
        return
    points = [sum(verdict.max for verdict in each.verdicts) for each in found]
    alt = f"Bars: {len(found)} students and the points they lack in parts that most have, at most {max(points):g}."
    with picture("Stuck on what most have solved", alt, size=(9, 1.3 + 0.35 * len(found))) as p:
        axes = p.axes[0]
        names = [shown(each.student, hidden) for each in found]
        bars = axes.barh(names, points, color=ORANGE, edgecolor=BLACK)
        axes.bar_label(bars, [f"{len(each.verdicts)} parts" for each in found], padding=3)
        axes.set(xlabel="points lacking in parts that more than half of the class has", xlim=(0, 1.2 * max(points)))
        axes.invert_yaxis()
        lines = [
            textwrap.shorten(f"{name}: {each.verdicts[0].title}: {each.verdicts[0].message}", 220, placeholder=" …")
            for name, each in zip(names, found, strict=True)
        ]
        p.caption = "\n".join(lines)


# %%
explore(draw_stuck, assignment=choice("puzzle", list(rows_of)), hidden=tick("hide names", True))

# %% [markdown]
# ## 5 · Time
#
# What is recorded is the grader's time for each submission: it tells who waits for whom, and finds loops that never end (they
# run into the limit for a cell). Below it, the median time of each part, its hole and its hidden tests: where a class keeps the
# grader busy. How long a *learner* worked, and on which part, nobody records.


# %% tags=["drawing"]
def draw_time(assignment: str, hidden: bool) -> None:
    rows = sorted(rows_of[assignment], key=lambda row: -row.result.seconds)[:40]
    seconds = [row.result.seconds for row in rows]
    middle = sorted(seconds)[len(seconds) // 2]
    alt = f"Bars of grading time by submission, {seconds[0]:.1f} s at most, median {middle:.1f} s."
    with picture("Seconds of grading by submission", alt, size=(9, 1.4 + 0.28 * len(rows))) as p:
        axes = p.axes[0]
        names = [shown(row.submission.student, hidden) for row in rows]
        bars = axes.barh(names, seconds, color=SKY, edgecolor=BLACK)
        axes.bar_label(bars, [f"{each:.1f}" for each in seconds], padding=3)
        axes.axvline(middle, color=BLACK, linestyle=":", label=f"median {middle:.1f} s")
        axes.set(xlabel="seconds", xlim=(0, 1.15 * max(*seconds, 0.1)))
        axes.invert_yaxis()
        axes.legend(frameon=False, loc="lower right")
        notes = [f"{name}: {row.result.notes[0]}" for name, row in zip(names, rows, strict=True) if row.result.notes]
        p.caption = "\n".join([f"{sum(seconds):.1f} s in all.", *notes[:8]])
    draw_part_times(assignment)


def draw_part_times(assignment: str) -> None:
    took = insight.part_seconds(rows_of[assignment])
    slowest = max(took, key=lambda title: took[title], default="none")
    alt = f"Bars of the median time of each part; the slowest is '{slowest}'."
    with picture("Median seconds by part", alt, size=(9, 1.4 + 0.28 * len(took))) as p:
        bars = p.axes[0].barh(
            [textwrap.shorten(title, 40) for title in took], took.values(), color=GREEN, edgecolor=BLACK
        )
        p.axes[0].bar_label(bars, [f"{each:.2f}" for each in took.values()], padding=3)
        p.axes[0].set(xlabel="seconds", xlim=(0, 1.15 * max(*took.values(), 0.01)))
        p.axes[0].invert_yaxis()


# %%
explore(draw_time, assignment=choice("puzzle", list(rows_of)), hidden=tick("hide names", True))

# %% [markdown]
# ## 6 · Would the grade survive another draw?
#
# Hidden cases are drawn from a seed, the same for the whole class. Somebody who appeals deserves another draw: choose a student and
# a seed, and the submission is graded again in the sandbox, as it is handed in now. **Nothing is recorded.** Bars that differ mean
# one of three things: the submission has changed since, an answer is right on some inputs only, or a case is too rare.


# %% tags=["drawing"]
def draw_preview(assignment: str, student: str, seed: int, hidden: bool) -> None:
    [row] = [row for row in rows_of[assignment] if alias[row.submission.student] == student] or [None]
    if row is None:
        print(f"{student} has handed in nothing for {assignment}.")
        return
    again = insight.preview(course, row.submission, seed)
    before = {verdict.part: verdict for verdict in row.result.verdicts}
    changed = [verdict.title for verdict in again.verdicts if verdict.score != before[verdict.part].score]
    name = shown(row.submission.student, hidden)
    alt = f"Two bars a part, recorded and with seed {seed}: {row.result.score:g} and {again.score:g} points in all, {len(changed)} parts differ."
    with picture(f"{name}: recorded (seed {row.seed}) and graded again (seed {seed})", alt, size=(11, 3.6)) as p:
        axes = p.axes[0]
        places = range(len(again.verdicts))
        old, new = [before[v.part].score for v in again.verdicts], [v.score for v in again.verdicts]
        axes.bar(
            [x - 0.2 for x in places], old, 0.4, color=GREY, edgecolor=BLACK, label=f"recorded, {row.result.score:g}"
        )
        axes.bar(
            [x + 0.2 for x in places],
            new,
            0.4,
            color=GREEN,
            edgecolor=BLACK,
            hatch="//",
            label=f"again, {again.score:g}",
        )
        axes.plot(
            places, [verdict.max for verdict in again.verdicts], "_", color=BLACK, markersize=28, label="to be had"
        )
        for x, verdict in zip(places, again.verdicts, strict=True):
            axes.text(
                x, -1.2, f"{LOOKS[before[verdict.part].status][0]}→{LOOKS[verdict.status][0]}", ha="center", va="top"
            )
        axes.set_xticks(places, [textwrap.fill(verdict.title, 14) for verdict in again.verdicts], fontsize=8)
        axes.tick_params(axis="x", pad=16)
        axes.set(ylabel="points", ylim=(0, 1.25 * max(verdict.max for verdict in again.verdicts)))
        axes.legend(frameon=False, ncols=3, loc="upper right")
        p.caption = (
            f"Recorded {row.result.score:g}, again {again.score:g} of {again.max:g}, in {again.seconds:.1f} s. "
            + (f"Different: {', '.join(changed)}." if changed else "No part differs.")
        )


# %%
most_interesting = max(next(iter(rows_of.values())), key=lambda row: 0 < row.result.score < row.result.max)
explore(
    draw_preview,
    assignment=choice("puzzle", list(rows_of)),
    student=choice(
        "student",
        sorted(alias.values(), key=lambda each: int(each.split()[1])),
        alias[most_interesting.submission.student],
    ),
    seed=slider("seed", 0, 1000, fresh_seed() % 1000),
    hidden=tick("hide names", True),
)

# %% [markdown]
# To record a new draw for everybody: `python -m autograder grade --force --seed N`. For one person, Formgrader changes a score by
# hand, and `grade` keeps it. `python -m autograder export --format csv` takes the scores out.
