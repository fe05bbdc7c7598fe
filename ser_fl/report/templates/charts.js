// Charts drawn from the figures in #charts: robust UAR over the budget, with a slider, and UAR and loss over rounds.
"use strict";

const CHARTS = JSON.parse(document.getElementById("charts").textContent);
const MARKS = "●■▲◆";
const colour = (place) => `var(--c${place % 8})`;
const percent = (share) => (share === null || share === undefined ? MISSING : (100 * share).toFixed(1));

/** Draw lines into a host as SVG, anew whenever its width changes.
 *  what: { axis, share, ticks: [[x, words]], chance, at, label, lines: [{ colour, dashed, mark, points: [[x, y, words]], star }] } */
function draw(host, what) {
  const width = Math.max(280, Math.min(host.clientWidth, 960)), height = 300, left = 46, right = 14, top = 12, bottom = 46;
  const points = what.lines.flatMap((line) => line.points);
  const xs = [...what.ticks.map(([x]) => x), ...points.map(([x]) => x)];
  const low = Math.min(...xs), high = Math.max(...xs), peak = what.share ? 1 : Math.max(...points.map(([, y]) => y)) || 1;
  const x = (value) => left + ((value - low) / (high - low || 1)) * (width - left - right);
  const y = (value) => height - bottom - (value / peak) * (height - top - bottom);
  const texts = [];
  const text = (content, at, anchor) => { texts.push(content); return `<text ${at} text-anchor="${anchor}"></text>`; };
  const parts = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const words = what.share ? `${100 * part} %` : (part * peak).toPrecision(2);
    return `<line class="grid" x1="${left}" x2="${width - right}" y1="${y(part * peak)}" y2="${y(part * peak)}"/>` +
      text(words, `x="${left - 6}" y="${y(part * peak) + 4}"`, "end");
  });
  const every = Math.ceil(what.ticks.length / Math.max(2, Math.floor((width - left) / 90)));
  what.ticks.forEach(([value, words], place) => {
    const anchor = place === 0 ? "start" : place === what.ticks.length - 1 ? "end" : "middle";
    if (place % every === 0) parts.push(text(words, `x="${x(value)}" y="${height - bottom + 18}"`, anchor));
  });
  parts.push(text(what.axis, `x="${(left + width - right) / 2}" y="${height - 6}"`, "middle"));
  if (what.chance) parts.push(`<line class="chance" x1="${left}" x2="${width - right}" y1="${y(what.chance)}" y2="${y(what.chance)}"/>`,
    text("chance", `x="${(left + width - right) / 2}" y="${y(what.chance) - 4}"`, "middle"));
  if (what.at !== undefined) parts.push(`<line class="at" x1="${x(what.at)}" x2="${x(what.at)}" y1="${top}" y2="${height - bottom}"/>`);
  for (const line of what.lines) {
    const path = line.points.map(([px, py]) => `${x(px)},${y(py)}`).join(" ");
    parts.push(`<polyline class="line" points="${path}" style="stroke:${line.colour}"${line.dashed ? ' stroke-dasharray="6 4"' : ""}/>`);
    if (line.points.length <= 30) for (const [px, py] of line.points) {
      parts.push(`<g style="fill:${line.colour}">${mark(line.mark, x(px), y(py))}</g>`);
    }
    if (line.star) parts.push(`<circle cx="${x(line.star[0])}" cy="${y(line.star[1])}" r="6" style="fill:${line.colour}"/>`);
  }
  host.innerHTML = `<svg role="img" viewBox="0 0 ${width} ${height}">${parts.join("")}</svg>`;
  host.firstChild.setAttribute("aria-label", what.label);
  host.querySelectorAll("text").forEach((node, place) => { node.textContent = texts[place]; });
}

function mark(kind, x, y) {
  if (kind === 1) return `<rect x="${x - 4}" y="${y - 4}" width="8" height="8"/>`;
  if (kind === 2) return `<path d="M${x} ${y - 5}l5 9h-10z"/>`;
  if (kind === 3) return `<path d="M${x} ${y - 6}l6 6-6 6-6-6z"/>`;
  return `<circle cx="${x}" cy="${y}" r="4"/>`;
}

/** Redraws where the width has changed, as when a phone is turned. */
function onWidth(host, redraw) {
  let width = 0;
  new ResizeObserver(() => { if (host.clientWidth !== width) { width = host.clientWidth; redraw(); } }).observe(host);
}

function choice(words, names) {
  const select = element("select", {}, ...names.map((name, place) => element("option", { value: place }, name)));
  return [select, element("label", {}, `${words} `, select)];
}

/** One domain and norm: a chart, a slider over the measured budgets, and a table of the UAR of each run there. */
function budgetPanel(host, chart) {
  const runs = [...new Set(chart.series.map((one) => one.run))], defences = [...new Set(chart.series.map((one) => one.defence))];
  const attacks = [...new Set(chart.series.map((one) => one.attack))];
  const [attack, attackLabel] = choice("Attack", attacks);
  const slider = element("input", { type: "range", min: 0, max: chart.budgets.length - 1, step: 1 });
  const told = element("output", { class: "told" }), figure = element("div", { class: "chart" });
  const head = ["Run", "Test-time defence", "UAR", "95 %", "n", "By"].map((name) => element("th", { scope: "col" }, name));
  const body = element("tbody"), caption = element("strong");
  const table = element("table", {}, element("caption", {}, caption), element("thead", {}, element("tr", {}, ...head)), body);
  const box = element("div", { class: "table", role: "group", tabindex: 0, "aria-label": `UAR at one budget, ${chart.name}` }, table);
  host.append(element("div", { class: "controls" }, attackLabel, element("label", {}, "Budget ", slider)), told,
    element("div", { class: "panel" }, figure, element("div", {}, box)));
  const series = () => chart.series.filter((one) => one.attack === attacks[attack.value]);
  const pointAt = (one, place) => one.points.find((point) => point.budget === chart.budgets[place].value);

  function refill() {
    body.replaceChildren(...series().map((one) => {
      const swatch = element("span", { "aria-hidden": "true", style: `color:${colour(runs.indexOf(one.run))}` },
        `${MARKS[defences.indexOf(one.defence) % 4]} `);
      const row = element("tr", {}, element("th", { scope: "row" }, swatch, one.run), element("th", { scope: "row" }, one.defence),
        ...["", "", "", "words long"].map((name) => element("td", { class: name })));
      row.series = one;
      return row;
    }));
    slider.value = chart.budgets.map((_, place) => place).reduce((best, place) => (count(place) >= count(best) ? place : best), 0);
    tell();
  }
  const count = (place) => series().filter((one) => pointAt(one, place)?.uar != null).length;

  function tell() {
    const place = Number(slider.value), budget = chart.budgets[place].words, measured = [];
    for (const row of body.rows) {
      const point = pointAt(row.series, place), cells = row.querySelectorAll("td");
      if (point?.uar != null) measured.push(point.uar);
      cells[0].textContent = percent(point?.uar) + (point?.grey ? " †" : "");
      cells[1].textContent = point?.interval ? point.interval.map(percent).join("\u00a0to\u00a0") : MISSING;
      cells[2].textContent = point?.n ?? MISSING;
      cells[3].textContent = point ? point.by || "nobody" : "not measured here";
    }
    const ends = [...new Set([Math.min(...measured), Math.max(...measured)].map(percent))].join(" to ");
    slider.setAttribute("aria-valuetext", budget);
    caption.textContent = `UAR in per cent, ${budget}`;
    told.textContent = measured.length ? `${budget}: UAR ${ends} %` : `${budget}: not measured`;
    redraw();
  }

  function redraw() {
    const place = (point) => chart.budgets.findIndex((budget) => budget.value === point.budget);
    draw(figure, {
      axis: chart.axis, share: true, chance: chart.chance, at: Number(slider.value),
      label: `Robust UAR over ${chart.axis}, ${series().length} lines; the table below tells the figures at the slider.`,
      ticks: chart.budgets.map((budget, at) => [at, budget.value === null ? budget.words : String(budget.value)]),
      lines: series().map((one) => ({
        colour: colour(runs.indexOf(one.run)), mark: defences.indexOf(one.defence) % 4, dashed: one.points.some((point) => point.grey),
        points: one.points.filter((point) => point.uar !== null).map((point) => [place(point), point.uar]).sort((a, b) => a[0] - b[0]),
      })),
    });
  }
  attack.addEventListener("change", refill);
  slider.addEventListener("input", tell);
  refill();
  enhance(box);
  onWidth(figure, redraw);
}

CHARTS.budgets.forEach((chart) => {
  const host = document.getElementById("budgets");
  if (CHARTS.budgets.length > 1) host.append(element("h3", {}, chart.name));
  const panel = element("div");
  host.append(panel);
  budgetPanel(panel, chart);
});

CHARTS.rounds.forEach((chart) => {
  const figure = element("div", { class: "chart" });
  const names = chart.series.map((one) => element("li", {},
    element("span", { class: one.dashed ? "swatch dashed" : "swatch", style: `border-color:${colour(one.place)}` }), one.name));
  document.getElementById("rounds").append(
    element("div", {}, element("h3", {}, chart.name), figure, element("ul", { class: "legend" }, ...names)));
  const last = Math.max(...chart.series.flatMap((one) => one.points.map(([round]) => round)));
  const step = Math.max(1, Math.ceil(last / 8)), ticks = [];
  for (let round = 1; round <= last; round += step) ticks.push([round, String(round)]);
  onWidth(figure, () => draw(figure, {
    axis: chart.axis, share: chart.share, ticks, label: `${chart.name} over rounds, ${chart.series.length} lines.`,
    lines: chart.series.map((one) => ({ ...one, colour: colour(one.place), mark: 0 })),
  }));
});
