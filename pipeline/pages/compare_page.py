"""A comparison of runs as one HTML file that needs nothing else: verdict, figures, curves, grids, config.

Curves are drawn as SVG by the page's own script (below) from data inside the page; grids lie in it as data URIs. What
is compared and what it means is `compare.py`.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.files import atomic_write
from pipeline.past import compare, history
from pipeline.past.compare import Side, Verdict
from pipeline.past.history import Curve

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, 2008
POINTS = 300  # of a curve that are drawn
STEPS = 12  # pictures of a key that the page holds, evenly spread, the last one always
FEW = 16  # samples below which it is said without being asked what each was told
WIDEST = 512  # pixels of a picture's longer side
FIRST = ("diffusion/val_loss", "diffusion/train_loss", "autoencoder/val_psnr", "autoencoder/train_loss")
IN_BRIEF = ("fd", "fd_real", "fd_reconstructions", "class_accuracy", "psnr", "val_loss", "val_psnr", "train_loss")


def write(path: str | Path, compared: Sequence[Side], found: Verdict) -> None:
    """Write the page."""
    atomic_write(path, page(compared, found))


def page(compared: Sequence[Side], found: Verdict) -> str:
    """The page as text."""
    names = dict.fromkeys(side.past.name for side in compared)
    title = f"{len(compared)} runs compared: {', '.join(names)}"
    parts = [
        f"<p class=verdict>{_coloured(found.text, compared)}</p>",
        "".join(f"<p class=note>{_safe(line)}</p>" for line in found.why_not),
        _runs(compared, found),
        "<h2>Figures</h2>" + _figures(compared),
        "<h2>Curves</h2>" + _charts(compared),
        "<h2>Pictures</h2>" + _grids(compared),
        "<h2>Config: what differs</h2>" + _config(compared),
    ]
    return PAGE.format(title=_safe(title), style=STYLE, body="\n".join(parts), script=SCRIPT)


def _safe(text: object) -> str:
    return html.escape(str(text))


def _chip(i: int, label: str) -> str:
    return f"<span class=chip><i style='background:{_colour(i)}'></i>{_safe(label)}</span>"


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _coloured(text: str, compared: Sequence[Side]) -> str:
    """The verdict with each label as it is drawn in the charts."""
    text = _safe(text)
    for i, side in enumerate(compared):
        text = text.replace(_safe(side.label), _chip(i, side.label), 1)
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML."""
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) for row in rows]
    return "<div class=wide><table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _head(first: str, compared: Sequence[Side]) -> list[str]:
    return [first, *(_chip(i, side.label) for i, side in enumerate(compared))]


def _runs(compared: Sequence[Side], found: Verdict) -> str:
    rows = []
    for i, side in enumerate(compared):
        mark = " <b>better</b>" if i == found.winner else ""
        ended = [side.past.key, history.when(side.past.started_ms), side.past.status]
        rows.append([_chip(i, side.label) + mark, *ended, _safe(history.told(side.past))])
    same = compare.shared(compared)
    listed = ", ".join(f"{stage} <code>{_safe(key.split('/')[1])}</code>" for stage, key in same.items())
    note = f"<p class=note>The same in all: {listed}.</p>" if same else ""
    return _table(["run", "key", "begun", "ended as", "the model is told"], rows) + note


def _figures(compared: Sequence[Side]) -> str:
    """Few figures first; the others behind a fold."""
    brief: list[list[str]] = []
    rest: list[list[str]] = []
    for name, values in compare.scores(compared).items():
        winner = compare.best(name, values, compared)
        arrow = "↑" if compare.better(name) > 0 else "↓"
        cells = [f"{_safe(name)} <small>{arrow}</small>"]
        for i, value in enumerate(values):
            shown = "–" if value is None else f"{value:.4g}"
            cells.append(f"<td class=best>{shown}</td>" if i == winner else shown)
        (brief if name.rpartition("/")[2] in IN_BRIEF else rest).append(cells)
    head = _head("last value", compared)
    more = f"<details><summary>{len(rest)} more</summary>{_table(head, rest)}</details>" if rest else ""
    return (
        _table(head, brief)
        + "<p class=note>↑ more is better, ↓ less is better; the better one is marked, if they are comparable.</p>"
        + more
    )


def _config(compared: Sequence[Side]) -> str:
    differing = compare.differences([side.past for side in compared])
    rows = [[_safe(name), *(_safe(value) for value in values)] for name, values in differing.items()]
    return _table(_head("key", compared), rows) if rows else "<p>Nothing: the configs are equal.</p>"


# ---- curves ----------------------------------------------------------------------------------------------------------


def _charts(compared: Sequence[Side]) -> str:
    """A chart a metric. Curves of a stage that all share are left out: they are one curve."""
    same = {stage for stage in compare.shared(compared)}
    names = dict.fromkeys(name for side in compared for name in side.curves)
    shown = [n for n in names if n.split("/")[0] not in same and any(len(s.curves.get(n, [])) > 1 for s in compared)]
    if not shown:
        return "<p>No curves differ: all trained stages are shared.</p>"
    shown.sort(key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    brief = [name for name in shown if name in FIRST] or shown[:2]
    charts = ["<div class=charts>" + "".join(_chart(name, compared) for name in brief) + "</div>"]
    rest = [name for name in shown if name not in brief]
    if rest:
        inside = "".join(_chart(name, compared) for name in rest)
        charts.append(f"<details><summary>{len(rest)} more curves</summary><div class=charts>{inside}</div></details>")
    return "".join(charts)


def _chart(name: str, compared: Sequence[Side]) -> str:
    curves = [thinned(side.curves.get(name, [])) for side in compared]
    lines = [
        {"label": side.label, "colour": _colour(i), "points": curve}
        for i, (side, curve) in enumerate(zip(compared, curves, strict=True))
    ]
    values = [value for curve in curves for _, value in curve]
    log = bool(values) and min(values) > 0 and max(values) > 20 * min(values)
    data = json.dumps({"lines": lines, "log": log}).replace("<", "\\u003c")
    arrow = {1: " ↑", -1: " ↓", 0: ""}[compare.better(name)]
    scale = ", logarithmic" if log else ""
    return (
        f"<figure class=chart><figcaption>{_safe(name)}{arrow} <small>by step{scale}</small></figcaption>"
        f"<script type='application/json'>{data}</script></figure>"
    )


def thinned(curve: Curve, most: int = POINTS) -> list[list[float]]:
    """At most `most` finite points of a curve: stretches of equal length, a mean each (of step and of value)."""
    finite = [(step, value) for step, value in curve if math.isfinite(value)]
    each = max(1, math.ceil(len(finite) / most))
    parts = [finite[i : i + each] for i in range(0, len(finite), each)]
    return [
        [sum(s for s, _ in part) / len(part), float(f"{sum(v for _, v in part) / len(part):.6g}")] for part in parts
    ]


# ---- pictures --------------------------------------------------------------------------------------------------------


def _grids(compared: Sequence[Side]) -> str:
    """The runs' pictures of each key side by side, with a slider over the steps."""
    all_pictures, cells = [history.pictures(side.past) for side in compared], [history.cells(s.past) for s in compared]
    keys = dict.fromkeys(key for pictures in all_pictures for key in pictures)
    order = {"samples_final/ema": 0, "samples/ema": 1, "reconstructions/val": 2}
    blocks = []
    for key in sorted(keys, key=lambda key: (order.get(key, 9), key)):
        paths = [pictures.get(key, []) for pictures in all_pictures]
        if len({str(steps) for steps in paths}) == 1:  # a shared stage's
            continue
        columns = []
        for i, (side, steps) in enumerate(zip(compared, paths, strict=True)):
            chosen = _spread(steps)
            images = [f"<img alt='step {step}' data-step={step} src='{_data_uri(path)}'>" for step, path in chosen]
            inside = "".join(images) or "<p>none</p>"
            told = _told(cells[i].get(key, []))
            columns.append(f"<div class=grid>{_chip(i, side.label)}{inside}<small></small>{told}</div>")
        most = max(len(_spread(steps)) for steps in paths)
        slider = f"<input type=range min=0 max={most - 1} value={most - 1} aria-label='step'>" if most > 1 else ""
        block = f"<div class=pictures><h3>{_safe(key)} {slider}</h3><div class=row>{''.join(columns)}</div></div>"
        blocks.append(block if key in order else f"<details><summary>{_safe(key)}</summary>{block}</details>")
    return "".join(blocks) or "<p>No pictures differ.</p>"


def _told(cells: Sequence[str]) -> str:
    """What each sample of a square was told, in the same places; the whole of it where the mouse rests."""
    across = math.ceil(math.sqrt(len(cells)))
    spans = "".join(f"<span title='{_safe(text)}'>{_safe(text)}</span>" for text in cells)
    square = f"<div class=told style='grid-template-columns:repeat({across},1fr)'>{spans}</div>" if cells else ""
    return square if len(cells) <= FEW else f"<details><summary>what each was told</summary>{square}</details>"


def _spread(steps: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """At most STEPS of them, evenly spread, with the last."""
    if len(steps) <= STEPS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (STEPS - 1))] for i in range(STEPS)]


def _data_uri(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        scale = WIDEST / max(image.size)
        small: Any = image.convert("RGB")
        if scale < 1:
            small = small.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


# ---- the page itself -------------------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1>
{body}
<script>{script}</script></body></html>
"""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 1180px; margin: 1.5em auto;
  padding: 0 1em }
h1 { font-size: 1.1em; font-weight: 600; color: #555; margin: 0 } h2 { font-size: 1.15em; margin: 1.6em 0 .5em }
h3 { font-size: 1em; margin: .8em 0 .4em } h3 input { vertical-align: middle; margin-left: 1em; width: 14em }
.verdict { font-size: 1.45em; line-height: 1.35; margin: .35em 0 .6em } .note, small { color: #666 }
.note { margin: .3em 0 } .wide { overflow-x: auto }
.chip { white-space: nowrap } .chip i { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  margin-right: .35em }
table { border-collapse: collapse } th, td { text-align: left; padding: .22em 1.2em .22em 0; white-space: nowrap;
  border-bottom: 1px solid #e4e4e4; font-variant-numeric: tabular-nums } th { font-weight: 600 }
td.best { font-weight: 700 } td.best::after { content: " \\2713" }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 1em }
.chart { margin: 0; position: relative } figcaption { font-weight: 600 } figcaption small { font-weight: 400 }
svg { width: 100%; height: auto; display: block } svg text { font-size: 11px; fill: #555 }
.tip { position: absolute; pointer-events: none; background: #fff; border: 1px solid #bbb; padding: .2em .5em;
  font-size: 12px; display: none; white-space: nowrap }
.row { display: flex; gap: 1em; flex-wrap: wrap } .grid { flex: 1 1 300px; max-width: 540px }
.grid img { width: 100%; display: none; image-rendering: pixelated } .grid img.on { display: block }
.told { display: grid; gap: 2px 4px; font-size: 11px; line-height: 1.25; color: #444; margin-top: .4em }
.told span { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4; overflow: hidden;
  overflow-wrap: anywhere }
summary { cursor: pointer; margin: .6em 0; color: #444 }
"""

SCRIPT = """
const NS = "http://www.w3.org/2000/svg", W = 520, H = 240, L = 54, R = 64, T = 10, B = 24;
const make = (parent, tag, attributes, text) => {
  const node = document.createElementNS(NS, tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
};
const short = v => Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-3) ? v.toExponential(1) : String(+v.toPrecision(3));
function ticks(low, high, log) {
  if (log) {
    const all = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      for (const m of [1, 2, 5]) if (m * 10 ** e >= low && m * 10 ** e <= high) all.push(m * 10 ** e);
    return all.length > 7 ? all.filter(v => Math.abs(Math.log10(v) % 1) < 1e-9) : all;
  }
  const raw = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(raw || 1));
  const step = unit * [1, 2, 5, 10].find(m => m * unit >= raw), all = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) all.push(+v.toPrecision(12));
  return all;
}
function draw(figure) {
  const { lines, log } = JSON.parse(figure.querySelector("script").textContent);
  const points = lines.flatMap(line => line.points);
  if (!points.length) return;
  const xs = points.map(p => p[0]), ys = points.map(p => p[1]);
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (y0 === y1) { y0 -= Math.abs(y0) * .1 + 1e-9; y1 += Math.abs(y1) * .1 + 1e-9 }
  else if (!log) { const pad = (y1 - y0) * .04; y0 -= pad; y1 += pad }
  const f = log ? Math.log : v => v;
  const X = v => L + (v - x0) / (x1 - x0) * (W - L - R), Y = v => T + (f(y1) - f(v)) / (f(y1) - f(y0)) * (H - T - B);
  const svg = make(figure, "svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
  for (const v of ticks(y0, y1, log)) {
    make(svg, "line", { x1: L, x2: W - R, y1: Y(v), y2: Y(v), stroke: "#e6e6e6" });
    make(svg, "text", { x: L - 6, y: Y(v) + 4, "text-anchor": "end" }, short(v));
  }
  for (const v of ticks(x0, x1, false)) make(svg, "text", { x: X(v), y: H - 8, "text-anchor": "middle" }, short(v));
  const ends = [];
  for (const line of lines) {
    if (!line.points.length) continue;
    const d = line.points.map((p, i) => (i ? "L" : "M") + X(p[0]).toFixed(1) + " " + Y(p[1]).toFixed(1)).join("");
    make(svg, "path", { d, fill: "none", stroke: line.colour, "stroke-width": 1.8, "stroke-linejoin": "round" });
    const last = line.points[line.points.length - 1];
    make(svg, "circle", { cx: X(last[0]), cy: Y(last[1]), r: 3, fill: line.colour });
    ends.push({ y: Y(last[1]), x: X(last[0]), text: short(last[1]), colour: line.colour });
  }
  ends.sort((a, b) => a.y - b.y).forEach((end, i) => {
    if (i) end.y = Math.max(end.y, ends[i - 1].y + 12);
    make(svg, "text", { x: end.x + 7, y: end.y + 4, style: `fill:${end.colour};font-weight:600` }, end.text);
  });
  const tip = figure.appendChild(Object.assign(document.createElement("div"), { className: "tip" }));
  const cross = make(svg, "line", { y1: T, y2: H - B, stroke: "#999", visibility: "hidden" });
  svg.onmousemove = event => {
    const box = svg.getBoundingClientRect(), scale = W / box.width;
    const at = x0 + ((event.clientX - box.left) * scale - L) / (W - L - R) * (x1 - x0);
    const near = lines.filter(l => l.points.length).map(l => [l, l.points.reduce(
      (a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)]);
    tip.replaceChildren(...near.map(([l, p]) => {
      const row = document.createElement("div");
      row.textContent = `${l.label}: ${short(p[1])} at step ${Math.round(p[0])}`;
      row.style.color = l.colour;
      return row;
    }));
    const x = Math.min(Math.max(at, x0), x1);
    cross.setAttribute("x1", X(x)); cross.setAttribute("x2", X(x)); cross.setAttribute("visibility", "visible");
    const left = Math.min((event.clientX - box.left) + 12, box.width - 220);
    tip.style.cssText = `display:block;left:${left}px;top:30px`;
  };
  svg.onmouseleave = () => { tip.style.display = "none"; cross.setAttribute("visibility", "hidden") };
}
document.querySelectorAll("figure.chart").forEach(draw);
document.querySelectorAll(".pictures").forEach(block => {
  const slider = block.querySelector("input");
  const show = () => block.querySelectorAll(".grid").forEach(grid => {
    const images = [...grid.querySelectorAll("img")];
    if (!images.length) return;
    const share = slider && +slider.max ? slider.value / slider.max : 1, at = Math.round(share * (images.length - 1));
    images.forEach((image, i) => image.classList.toggle("on", i === at));
    if (slider) grid.querySelector("small").textContent = "step " + images[at].dataset.step;
  });
  if (slider) slider.oninput = show;
  show();
});
"""
