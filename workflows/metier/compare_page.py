"""A comparison of models as one page on its own: what to say of each category, plots, and every figure. Pure; `cli_models` writes it.

No script and nothing from elsewhere: it opens from a disk, prints, and follows the reader's light or dark. It is well-formed XML too, so that tests read it.
"""

from __future__ import annotations

from metier import compare_page_plots as plots
from metier import compare_page_tables as tables
from metier.compare_page_style import STYLE
from metier.compare_page_text import safe
from metier_workflows.choosing.comparison import Category, Comparison

HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<title>{title}</title><style>{style}</style></head>
<body>
"""


def page(found: Comparison, name: str) -> str:
    """The page; `name` is what was compared."""
    parts = [HEAD.format(title=safe(f"{name}: commoditised or specialised?"), style=STYLE), _top(found, name)]
    parts += [_heat(found)] if found.whole.ranked else []
    parts += [_categories(found)] if found.categories else []
    parts += [_accuracy(found)] if found.whole.ranked else []
    parts += [_pairs(found)] if found.pairs else []
    parts += [_pools(found)] if found.drops else []
    return "\n".join([*parts, _details(found), _method(found), "</body></html>\n"])


def _top(found: Comparison, name: str) -> str:
    facts = f"{found.queries:,} queries, {len(found.models)} models, {len(found.categories)} categories."
    left = [one for one in found.models if one not in found.whole.ranked]
    out = f" Not ranked, since fewer than half of the queries have a score: {safe(', '.join(left))}." if left else ""
    return (
        f"<h1>{safe(name)}: commoditised or specialised?</h1>\n"
        f'<p class="lead">{safe(found.verdict.sentence)}</p>\n<p class="facts">{facts}{out}'
        " Brackets are 95 % intervals; points are percentage points of right answers; an oracle asks a model that is right, if one is.</p>"
    )


def _heat(found: Comparison) -> str:
    return (
        "<h2>Who is right where</h2>\n"
        f"<p>Right answers in percent, the best of each row underlined. Blue is better than {safe(found.whole.ranked[0])}, the best on all, and orange is worse; the stronger, the further"
        f" apart. A frame and bold: that difference is significant, corrected for all pairs in all categories.</p>\n{tables.models_by_category(found)}"
    )


def _categories(found: Comparison) -> str:
    return f"<h2>What follows for each category</h2>\n{tables.verdicts(found.categories)}"


def _accuracy(found: Comparison) -> str:
    priced = all(one.cost_usd for one in found.whole.standings if one.accuracy)
    front = " The dashed line joins the models that no cheaper one beats." if priced else ""
    title = "Accuracy and cost" if priced else "Accuracy"
    return (
        f"<h2>{title}</h2>\n<figure>{plots.scatter(found.whole.standings)}\n"
        f"<figcaption>All queries. Lines are 95 % intervals.{front}</figcaption></figure>\n{tables.models(found.whole)}"
    )


def _pairs(found: Comparison) -> str:
    known = any(one.agreement for one in found.pairs)
    below = "Below the diagonal, blue: how often two models give the same answer, in percent. " if known else ""
    above = "Above it" if known else "Above the diagonal"
    return (
        "<h2>Which agree, and which fail together</h2>\n"
        f"<p>{below}{above}, orange: how far their errors go together (phi: 0 by chance, 1 always). Each category has its own further down.</p>\n"
        f"{tables.agreement(found.pairs, found.whole.ranked)}\n<h2>Which pairs complement each other</h2>\n"
        "<p>Those of which one or the other is right most often. The less their errors go together, the more a second opinion tells.</p>\n"
        f"{tables.pairs(found.pairs)}\n{_by_category(found)}"
    )


def _by_category(found: Comparison) -> str:
    several = len(found.categories) > 1
    return (
        f"<p>In each category the pair that is right most often:</p>\n{tables.pairs_by_category(found.categories)}"
        if several
        else ""
    )


def _pools(found: Comparison) -> str:
    return (
        "<h2>Which could be dropped</h2>\n"
        f"<p>One at a time, on the {found.pooled:,} queries that all ranked models have a score for. Choosing by category asks"
        " the model that was best in the category on nine tenths of the queries, and counts on the tenth.</p>\n"
        f"{tables.drops(found.drops)}\n<h2>How many are needed</h2>\n"
        "<p>From the best model on, the one that adds most to an oracle comes next. Two that are alike can each be dropped, but not both: here they count once.</p>\n"
        f'<figure>{plots.growth(found.growth)}\n<figcaption><span style="color:var(--blue)">●</span> an oracle over the models so far,'
        f' <span style="color:var(--orange)">▲</span> choosing by category among them; right answers with 95 % intervals.</figcaption></figure>\n{tables.pools(found.growth)}'
    )


def _details(found: Comparison) -> str:
    parts = "\n".join(
        f"<details><summary>{safe(one.segment.name)}: {one.segment.queries:,} queries</summary>{tables.models(one.segment)}{_together(one)}</details>"
        for one in found.categories
    )
    return f"<h2>Every category in full</h2>\n{parts}"


def _together(one: Category) -> str:
    return (
        f"<p>Same answer, and errors that go together:</p>\n{tables.agreement(one.pairs, one.segment.ranked)}"
        if one.pairs
        else ""
    )


def _method(found: Comparison) -> str:
    return (
        "<h2>How it was judged</h2>\n"
        f'<p class="note">A difference of {100 * found.margin:g} points is taken not to matter. Better or behind: p &lt; 0.05 by McNemar\'s mid-p (graded scores: paired t),'
        " corrected by Holm over all pairs in all categories. Intervals: Wilson; Bonett and Price for differences; Student's t moved for skewness (Hall) for costs. The rules of the"
        " verdicts: <code>docs/how-to/compare-models.md</code>.</p>"
    )
