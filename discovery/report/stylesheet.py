"""The style sheet of report.html: one column, light and dark, printable, and self-contained."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --ink: #1d2125; --soft: #59636e; --paper: #ffffff;
  --panel: #f6f8fa; --line: #d1d9e0;
  --link: #0b57d0; --good: #1a6b32; --bad: #b3261e; --unsure: #7a4f00; --good-bg: #e3f4e6;
  --bad-bg: #fce8e6; --unsure-bg: #fdf1d7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b1; --paper: #0f1318;
  --panel: #181e25; --line: #39424c;
  --link: #8ab4f8; --good: #7ee29a; --bad: #ffb4ab; --unsure: #f3c969; --good-bg: #12311c;
  --bad-bg: #3f1512; --unsure-bg: #3a2c08; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .25rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
p, ul { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); }
.soft { color: var(--soft); font-size: .9rem; font-weight: 400; }
.skip { position: absolute; left: -99rem; }
.skip:focus { position: static; }
.verdict { border: 1px solid currentColor; border-left-width: .5rem; border-radius: .5rem;
  padding: 1rem 1.25rem; }
.verdict p, .verdict ul { color: var(--ink); }
.verdict .word { font-size: 1.35rem; font-weight: 700; color: inherit; margin: 0; }
.good { color: var(--good); } .bad { color: var(--bad); } .unsure { color: var(--unsure); }
.verdict.good { background: var(--good-bg); } .verdict.bad { background: var(--bad-bg); }
  .verdict.unsure { background: var(--unsure-bg); }
.outcome { font-weight: 600; white-space: nowrap; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr));
  gap: .75rem 1.5rem; margin: 1rem 0; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1rem 0; }
.wide:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .75rem .4rem 0;
  border-bottom: 1px solid var(--line); }
td { overflow-wrap: break-word; max-width: 30rem; }
td code { overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--line); }
tbody th { font-weight: 600; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; display: block; border: 1px solid var(--line);
  border-radius: .4rem; background: #fff; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; max-width: 46rem; }
code, pre {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: .88em; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .4rem;
  padding: .75rem 1rem; overflow-x: auto; }
details { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .9rem; margin: 1rem 0;
  }
summary { cursor: pointer; font-weight: 600; }
@media print { body { max-width: none; padding: 0; } details { border: 0; } figure, tr {
  break-inside: avoid; } .skip { display: none; } }
"""
