// Every table with a head: sorting by its columns, a filter of its rows, and downloads of the rows that are shown.
"use strict";

const MISSING = "–";

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The text of a cell, with its line breaks, also where it lies in a closed <details>. */
function textOf(cell) {
  return [...cell.childNodes].map((node) => (node.nodeName === "BR" ? "\n" : node.textContent)).join("").trim()
    .replaceAll("\u00a0", " ");
}

/** The figure that a cell begins with, as in "≤ 0.2 / 0.4 †"; NaN where it begins with a word. */
function figureOf(text) {
  const found = /^(?:≤ |ε |SNR )?(-?[\d,]*\.?\d+(?:e[-+]?\d+)?)/.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) : NaN;
}

/** Rows in the order of a column: figures as such where all are, other text as people order it; what is missing last. */
function sortRows(body, column, sign) {
  const keyed = [...body.rows].map((row) => [textOf(row.cells[column]), row]);
  const isMissing = ([text]) => text === "" || text === MISSING;
  const areFigures = keyed.every((entry) => isMissing(entry) || !Number.isNaN(figureOf(entry[0])));
  keyed.sort((one, other) => {
    if (isMissing(one) || isMissing(other)) return isMissing(one) - isMissing(other);
    if (areFigures) return sign * (figureOf(one[0]) - figureOf(other[0]));
    return sign * one[0].localeCompare(other[0], "en", { numeric: true });
  });
  body.append(...keyed.map(([, row]) => row));
}

function toCsv(header, rows) {
  const quoted = (text) => `"${text.replaceAll('"', '""').replaceAll("\n", " ")}"`;
  return [header, ...rows].map((row) => row.map(quoted).join(",") + "\r\n").join("");
}

/** A list of objects; plain figures are numbers, and what is missing is null. */
function toJson(header, rows) {
  const value = (text) => {
    if (text === MISSING) return null;
    return /^-?\d[\d,]*(\.\d+)?$/.test(text) ? Number(text.replaceAll(",", "")) : text;
  };
  const names = header.map((text) => text.replaceAll("\n", " ") || "row");
  return JSON.stringify(rows.map((row) => Object.fromEntries(row.map((text, i) => [names[i], value(text)]))), null, 1);
}

const LATEX = {
  "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "–": "--", "−": "$-$",
  "ε": "$\\varepsilon$", "∞": "$\\infty$", "±": "$\\pm$", "†": "$\\dagger$", "≤": "$\\leq$", "×": "$\\times$",
};

/** A tabular for the package booktabs. */
function toLatex(header, rows, labels) {
  const escaped = (text) => text.replace(/[&%$#_{}\\~^–−ε∞±†≤×]/g, (sign) => LATEX[sign] ?? `\\${sign}`);
  const cell = (text) => {
    const lines = text.split("\n").map(escaped);
    return lines.length > 1 ? `\\shortstack{${lines.join("\\\\")}}` : lines[0];
  };
  const line = (row) => row.map(cell).join(" & ") + " \\\\\n";
  const columns = "l".repeat(labels) + "r".repeat(header.length - labels);
  return `\\begin{tabular}{${columns}}\n\\toprule\n${line(header)}\\midrule\n` +
    `${rows.map(line).join("")}\\bottomrule\n\\end{tabular}\n`;
}

function download(name, kind, content) {
  const link = element("a", { download: name, href: URL.createObjectURL(new Blob([content], { type: kind })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function enhance(box) {
  const table = box.querySelector("table");
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const header = heads.map(textOf), title = box.getAttribute("aria-label").replaceAll("\n", " ");
  const shown = () => [...body.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map(textOf));
  const tools = element("div", { class: "tools" }), told = element("output");
  if (body.rows.length > 5) {
    const filter = element("input", { type: "search", placeholder: "Filter rows", "aria-label": `Filter rows of ${title}` });
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
      told.textContent = filter.value ? `${shown().length} of ${body.rows.length} rows` : "";
    });
    tools.append(filter);
  }
  const file = title.replace(/[^A-Za-z0-9]+/g, "_").replace(/^_|_$/g, "").toLowerCase() || "table";
  const labels = () => body.rows[0]?.querySelectorAll("th").length ?? 1;
  const formats = {
    CSV: () => download(`${file}.csv`, "text/csv", toCsv(header, shown())),
    JSON: () => download(`${file}.json`, "application/json", toJson(header, shown())),
    LaTeX: () => download(`${file}.tex`, "text/x-tex", toLatex(header, shown(), labels())),
  };
  for (const [name, make] of Object.entries(formats)) {
    const button = element("button", { type: "button", "aria-label": `${name} of ${title}` }, name);
    button.addEventListener("click", make);
    tools.append(button);
  }
  tools.append(told);
  box.before(tools);
  if (body.rows.length < 2) return;
  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, ...head.childNodes);
    if (!header[column]) button.setAttribute("aria-label", "Row");
    head.append(button);
    button.addEventListener("click", () => {
      const falls = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      sortRows(body, column, falls ? -1 : 1);
    });
  });
}

for (const cell of document.querySelectorAll(".bars td")) {
  const share = figureOf(textOf(cell));
  if (cell.cellIndex > 1 && !Number.isNaN(share)) cell.style.setProperty("--share", `${share}%`);
}
document.querySelectorAll(".table").forEach((box) => box.querySelector("thead") && enhance(box));
