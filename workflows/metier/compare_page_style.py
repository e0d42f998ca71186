"""How the page of a comparison looks: one style sheet, light and dark. `compare_page` puts it into the page.

Blue is better and orange is worse, the two that are told apart by nearly everybody (Okabe and Ito 2008); what is significant has a frame too.
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5a6270; --paper: #fff; --card: #f5f6f8; --line: #d9dce1;
  --blue: #0072b2; --orange: #d55e00; --green: #00755a; --wash-blue: 0, 114, 178; --wash-orange: 213, 94, 0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --soft: #a5adba; --paper: #14171b; --card: #1e2228; --line: #363c45;
  --blue: #56b4e9; --orange: #ff9a4d; --green: #3fc79f; --wash-blue: 60, 150, 215; --wash-orange: 230, 120, 40; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem 1.25rem 4rem; padding-left: max(1.25rem, calc((100vw - 74rem) / 2)); background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--soft); margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 52rem; }
.lead { font-size: 1.45rem; line-height: 1.35; margin: .5rem 0 .8rem; max-width: 60rem; overflow-wrap: anywhere; }
.facts, .note, figcaption { color: var(--soft); }
.wide { overflow-x: auto; max-width: 100%; }
figure { margin: .5rem 0; overflow-x: auto; }
figcaption { position: sticky; left: 0; }
svg { display: block; min-width: 46rem; max-width: 100%; height: auto; color: var(--ink); font: 12px system-ui, sans-serif; }
svg text { fill: currentColor; }
svg .soft { fill: var(--soft); }
svg .grid { stroke: var(--line); }
svg .lead-line { stroke: var(--soft); opacity: .45; fill: none; }
svg .front { stroke: var(--blue); stroke-dasharray: 5 4; fill: none; opacity: .7; }
svg .one { stroke: var(--blue); fill: var(--blue); }
svg .two { stroke: var(--orange); fill: var(--orange); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; }
thead th { vertical-align: bottom; color: var(--soft); white-space: normal; }
th[scope=row], thead th:first-child, .text { text-align: left; }
.say { text-align: left; white-space: normal; min-width: 22rem; max-width: 48rem; overflow-wrap: anywhere; }
.verdicts thead th:nth-child(3), .by-category thead th:nth-child(2) { text-align: left; }
td small { color: var(--soft); font-size: .85em; }
.heat td { text-align: center; min-width: 3.1rem; border: 1px solid var(--paper); padding: .3rem .35rem; }
.heat thead th { height: 1px; padding: .2rem; }
.heat thead th span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
.heat th[scope=row] { position: sticky; left: 0; background: var(--paper); border: 0; }
.up { background: rgba(var(--wash-blue), var(--much)); }
.down { background: rgba(var(--wash-orange), var(--much)); }
.top { text-decoration: underline; text-underline-offset: .2em; }
.sure { outline: 1px solid var(--ink); outline-offset: -3px; font-weight: 700; }
.kind { display: inline-block; white-space: nowrap; border: 1px solid currentColor; border-radius: 1rem; padding: 0 .6rem; font-size: .85em; }
.kind-specialised { color: var(--orange); } .kind-one-leads, .kind-shared-lead { color: var(--blue); }
.kind-commoditised, .kind-complementary { color: var(--green); } .kind-too-few, .kind-one-model { color: var(--soft); }
details { border-bottom: 1px solid var(--line); padding: .35rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary:focus-visible { outline: 2px solid var(--blue); }
@media (max-width: 46rem) { th[scope=row] { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; } .heat th[scope=row] { max-width: 9rem; font-size: .9em; }
  .verdicts thead { display: none; } .verdicts :is(tbody, tr, th, td) { display: block; border: 0; text-align: left; padding: .1rem 0; min-width: 0; }
  .verdicts tr { border-bottom: 1px solid var(--line); padding: .5rem 0; } .verdicts td:nth-child(2)::after { content: " queries"; } }
@media print { details > * { display: block; } .wide { overflow: visible; } }
"""
