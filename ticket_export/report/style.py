"""The look of the page: dark on white, one column on a phone, no colour needed, nothing fetched."""

from __future__ import annotations

CSS = """
:root { color-scheme: light; --ink: #1b1f24; --muted: #5b6470; --rule: #d9dee5; --wash: #f3f6f9;
  --blue: #0b5cad; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { margin: 0 0 1rem; font-size: 1rem; font-weight: 600; color: var(--muted); overflow-wrap: anywhere; }
h1 b { color: var(--ink); }
h2 { margin: 3rem 0 .35rem; font-size: 1.3rem; line-height: 1.3; letter-spacing: -.01em; }
h3 { margin: 2rem 0 .5rem; font-size: 1rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.note { color: var(--muted); font-size: .875rem; }
.lead { font-size: 1.5rem; line-height: 1.4; letter-spacing: -.012em; max-width: 56rem; margin: 0 0 1rem;
  text-wrap: pretty; }
.lead small { white-space: nowrap; font-size: .68em; color: var(--muted); letter-spacing: 0; }
.warning { border: 2px solid var(--ink); border-left-width: 10px; padding: .7rem 1rem; margin: 1.2rem 0; }
.warning ul { margin: .3rem 0 0; padding-left: 1.2rem; }
dl.facts { display: grid; grid-template-columns: repeat(3, 1fr); margin: 1.6rem 0 0;
  border-top: 2px solid var(--ink); }
dl.facts > div { padding: .7rem 1rem .7rem 0; border-bottom: 1px solid var(--rule); }
dt { color: var(--muted); font-size: .8125rem; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; font-variant-numeric: tabular-nums; }
table + table { margin-top: 2.2rem; }
caption { text-align: left; color: var(--muted); font-size: .875rem; padding-bottom: .4rem; }
th { text-align: left; font-weight: 600; font-size: .8125rem; color: var(--muted); vertical-align: bottom; }
th, td { padding: .5rem .9rem .5rem 0; border-bottom: 1px solid var(--rule); }
td { vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); }
tr > :first-child { padding-left: .8rem; }
th small { font-weight: 400; }
tbody th { color: var(--ink); font-size: .9375rem; vertical-align: top; white-space: nowrap; }
td small { display: block; color: var(--muted); font-size: .8125rem; white-space: nowrap; }
tr.ticket th, tr.ticket td { background: var(--wash); }
tr.ticket th { box-shadow: inset 4px 0 0 var(--blue); }
table.worth { table-layout: fixed; }
table.worth thead th:first-child { width: 8rem; }
table.worth td small { white-space: normal; }
.word { font-weight: 600; white-space: nowrap; }
.word::before { display: inline-block; width: 1.3em; }
.wins::before { content: "\\25B2"; } .loses::before { content: "\\25BC"; } .open::before { content: "?"; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 2rem 2.5rem;
  margin-top: 1rem; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-weight: 600; margin-bottom: .6rem; }
figcaption span { display: block; font-weight: 400; color: var(--muted); font-size: .875rem; }
details { margin-top: 1rem; border-top: 1px solid var(--rule); padding-top: .8rem; }
summary { cursor: pointer; font-weight: 600; }
.scroll { overflow-x: auto; margin-top: .6rem; }
.scroll table { font-size: .8125rem; white-space: nowrap; }
.scroll tbody th { font-size: .8125rem; }
footer { margin-top: 3rem; border-top: 2px solid var(--ink); padding-top: .8rem; }
@media (max-width: 44rem) {
  main { padding: 1.4rem 1rem 3rem; }
  .lead { font-size: 1.2rem; }
  .lead small { font-size: .8em; white-space: normal; }
  h2 { margin-top: 2.4rem; }
  dl.facts { grid-template-columns: 1fr; }
  dl.facts > div { display: grid; grid-template-columns: 6.5rem 1fr; gap: .6rem; padding: .45rem 0; }
  .figures { grid-template-columns: 1fr; }
  table.cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table.cards, table.cards caption, table.cards tbody, table.cards tr, table.cards th,
  table.cards td { display: block; }
  tr > :first-child { padding-left: 0; }
  table { font-size: .875rem; }
  table.cards tr { border-top: 2px solid var(--ink); padding: .5rem 0 .8rem; }
  table.cards tbody th { font-size: 1.05rem; border: 0; padding: 0 0 .2rem; box-shadow: none; }
  table.plain tbody th { white-space: normal; }
  table.plain td small { white-space: normal; }
  table.cards tr.ticket { background: var(--wash); box-shadow: inset 4px 0 0 var(--blue);
    padding-left: .8rem; }
  table.cards td small + small::before { content: "\\B7\\A0"; }
  table.cards td { display: grid; grid-template-columns: 7.6rem 1fr; border: 0; padding: .14rem 0; }
  table.cards td small { display: inline; white-space: normal; }
  table.worth.cards td small { display: block; }
  table.worth.cards td small + small::before { content: none; }
  table.cards td[data-label]::before { content: attr(data-label); color: var(--muted); font-size: .875rem; }
  table.cards td > span { min-width: 0; }
}
@media print { .figures figure, tr { break-inside: avoid; } main { padding: 0; max-width: none; } }
"""
