"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const cells = data.cells;
  const rowOf = new Map(cells.cell.map((cell, n) => [cell, n]));
  const quantities = new Map(data.quantities.map((q) => [q.name, q]));
  const views = new Map();
  let selected = "";
  let slice = data.slices[0];

  // ---------------------------------------------------------------- words and numbers

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "on") for (const [event, f] of Object.entries(value)) node.addEventListener(event, f);
      else if (value !== null && value !== false) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null)); // strings become text, never markup
    return node;
  };

  const number = (value, digits = 3) => {
    const size = Math.abs(value);
    let text;
    if (size && (size < 1e-4 || size >= 1e5)) text = value.toExponential(1);
    else if (size >= 1000) text = Math.round(value).toLocaleString("en");
    else text = String(Number(value.toPrecision(digits)));
    return (text === "-0" ? "0" : text).replace("-", "−");
  };

  const shown = (name, row) => {
    const value = data.values[name].value[row];
    if (value === null) return "–";
    const stderr = data.values[name].stderr[row];
    const unit = quantities.get(name).unit;
    return number(value) + (stderr ? " ± " + number(stderr, 2) : "") + (unit ? " " + unit : "");
  };

  const phase = (key) => data.phases[key];

  // ---------------------------------------------------------------- charts

  const rows = (name, y) => {
    const out = [];
    for (let n = 0; n < cells.cell.length; n++) {
      if (cells.slice[n] !== slice) continue;
      const row = {
        cell: cells.cell[n], label: cells.label[n], x: cells.x[n], y: cells.y[n], phase: cells.phase[n],
        mark: phase(cells.phase[n]).mark, likely: cells.likely[n], confidence: cells.confidence[n],
      };
      if (name) {
        row.value = data.values[name].value[n];
        row.stderr = data.values[name].stderr[n];
        row.shown = shown(name, n);
      }
      if (y) {
        row.other = data.values[y].value[n];
        row.otherShown = shown(y, n);
      }
      out.push(row);
    }
    return out;
  };

  const lines = (curve, chosen) => {
    const { names, cell, epochs, curves } = data.series;
    const out = [];
    for (const n of chosen) {
      const values = curves[curve][n];
      for (let e = 0; e < values.length; e++) {
        if (values[e] === null) continue;
        out.push({
          series: names[n], epoch: epochs[e], value: values[e], shown: number(values[e]), phase: cells.phase[cell[n]],
        });
      }
    }
    return out;
  };

  const focus = (item) => {
    if (!selected) return item.focus;
    const index = rowOf.get(selected);
    return lines(item.curve, [...data.series.cell.keys()].filter((n) => data.series.cell[n] === index));
  };

  const prepared = (item) => {
    const spec = structuredClone(item.spec);
    if (item.kind === "cells") spec.data.values = rows(item.quantity);
    if (item.kind === "curve") {
      spec.layer[0].data.values = lines(item.curve, data.series.context);
      spec.layer[1].data.values = focus(item);
    }
    if (item.kind === "explore") explore(spec);
    for (const parameter of spec.params || []) if (parameter.name === "selected") parameter.value = selected;
    return spec;
  };

  const tip = byId("tip");
  const tooltip = (handler, event, item, value) => {
    if (value === null || value === undefined || value === "" || event.type === "mouseout") {
      tip.hidden = true;
      return;
    }
    tip.replaceChildren(
      ...Object.entries(value).filter(([, text]) => text !== "" && text !== null && text !== "null")
        .map(([key, text]) => make("div", {}, make("span", {}, key), make("span", {}, String(text))))
    );
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, width - box.width - 4)) + "px";
    tip.style.top = Math.max(4, event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18) + "px";
  };

  const draw = async (item) => {
    const box = byId("chart-" + item.id);
    views.get(item.id)?.finalize();
    const made = await vegaEmbed(box, prepared(item), {
      actions: false, ast: true, defaultStyle: false, tooltip, mode: "vega-lite",
      config: data.themes[dark.matches ? "dark" : "light"],
      renderer: cells.cell.length > 1500 ? "canvas" : "svg",
    });
    views.set(item.id, made.view);
    if (item.kind === "cells" || item.kind === "explore") {
      made.view.addEventListener("click", (event, mark) => {
        const cell = mark?.datum?.cell;
        if (cell !== undefined) select(cell === selected ? "" : cell);
      });
    }
  };

  const visible = (item) => Boolean(byId("chart-" + item.id)?.offsetParent); // neither left out nor inside a closed box
  let drawing = Promise.resolve();
  const drawAll = (wanted) => {
    drawing = drawing.then(async () => {
      for (const item of data.charts) if (wanted(item) && visible(item)) await draw(item);
      document.documentElement.dataset.drawn = String(views.size);
    });
    return drawing;
  };

  // ---------------------------------------------------------------- selection

  const select = (cell, quiet = false) => {
    if (cell && !rowOf.has(cell)) return;
    selected = cell;
    if (cell && cells.slice[rowOf.get(cell)] !== slice) setSlice(cells.slice[rowOf.get(cell)]);
    for (const item of data.charts) {
      const view = views.get(item.id);
      if (!view) continue;
      if (item.kind === "curve") view.data("focus", focus(item)).runAsync();
      else if (item.kind !== "plain") view.signal("selected", selected).runAsync();
    }
    panel();
    models.page = 0;
    table();
    document.documentElement.dataset.selected = selected;
    if (!quiet) byId("said").textContent = cell ? describe(rowOf.get(cell)) : "No cell selected.";
    try {
      history.replaceState(null, "", selected ? "#cell=" + encodeURIComponent(selected) : location.pathname + location.search);
    } catch { /* some viewers forbid it; the selection works all the same */ }
  };

  const describe = (n) => `${cells.label[n]}: ${cells.phase[n]}, ${phase(cells.phase[n]).name}.`;

  const definition = (term, text) => make("div", {}, make("dt", {}, term), make("dd", {}, text));

  const panel = () => {
    const box = byId("panel");
    if (!cells.cell.length) return;
    if (!selected) {
      box.replaceChildren(make("h2", {}, "Click a cell"), make("p", { class: "what" },
        "of any map, or a row of the table: it is then selected everywhere, with its learning curves and its models."));
      box.hidden = innerWidth < 1120;
      box.classList.remove("open");
      return;
    }
    const n = rowOf.get(selected);
    const own = phase(cells.phase[n]);
    const confidence = cells.confidence[n];
    const sure = confidence === null ? "" : `, confidence ${confidence.toFixed(2)}`;
    const likely = cells.likely[n] && cells.likely[n] !== cells.phase[n] ? ` (most likely ${cells.likely[n]})` : "";
    const groups = new Map();
    const others = [];
    for (const q of data.quantities) {
      const text = shown(q.name, n);
      if (text === "–") continue;
      if (q.main) groups.set(q.group, [...(groups.get(q.group) || []), definition(q.label, text)]);
      else others.push(definition(q.label, text));
    }
    const names = { performance: "Performance", landscape: "Loss landscape", similarity: "Similarity of seeds", use: "What it is good for", other: "Other measures" };
    const chip = make("span", { class: "chip" }, own.mark || "–");
    chip.style.background = own.colour;
    const more = make("button", { id: "more", type: "button", "aria-expanded": String(box.classList.contains("open")), on: { click: () => {
      more.setAttribute("aria-expanded", String(box.classList.toggle("open")));
    } } }, "Values");
    box.replaceChildren(
      make("header", {}, make("h2", {}, cells.label[n]), make("span", {}, more, " ",
        make("button", { type: "button", "aria-label": "Clear the selection", on: { click: () => select("") } }, "Clear"))),
      data.labelled ? make("p", { class: "phase" }, chip, own.name + sure + likely) : "",
      make("div", { class: "body" },
        data.labelled ? make("p", { class: "what" }, own.meaning) : "",
        cells.reason[n] ? make("p", { class: "what" }, cells.reason[n]) : "",
        ...[...groups].flatMap(([group, list]) => [make("h3", {}, names[group]), make("dl", {}, ...list)]),
        others.length ? make("details", {}, make("summary", {}, `${others.length} more values`), make("dl", {}, ...others)) : "",
        make("p", { class: "what" }, `Mean of ${cells.n[n]} model${cells.n[n] === 1 ? "" : "s"} or their pairs ± standard error over seeds.`),
        make("div", { class: "buttons" }, make("a", { href: "#models" }, "Its models"), make("a", { href: "#curves" }, "Its learning curves"))),
    );
    box.hidden = false;
  };

  const move = (dx, dy) => {
    const { x, y } = data.axes;
    if (!x) return;
    const here = selected ? rowOf.get(selected) : -1;
    const across = x.values, down = y ? y.values : [""];
    let i = here < 0 ? 0 : across.indexOf(cells.x[here]) + dx;
    let j = here < 0 ? 0 : down.indexOf(cells.y[here]) + dy;
    for (; i >= 0 && i < across.length && j >= 0 && j < down.length; i += dx, j += dy) {
      const found = cells.cell.findIndex((_, n) => cells.slice[n] === slice && cells.x[n] === across[i] && cells.y[n] === down[j]);
      if (found >= 0) return select(cells.cell[found]);
      if (!dx && !dy) return;
      if (here < 0) return;
    }
  };

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && selected) return select("");
    if (!event.target.closest?.(".chart.cells")) return;
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move(...step);
  });

  // ---------------------------------------------------------------- slices

  const setSlice = (wanted) => {
    slice = wanted;
    if (byId("slice")) byId("slice").value = String(data.slices.indexOf(slice));
    if (selected && cells.slice[rowOf.get(selected)] !== slice) select("");
    drawAll((item) => item.kind === "cells" || item.kind === "explore");
  };
  byId("slice")?.addEventListener("change", (event) => setSlice(data.slices[Number(event.target.value)]));

  // ---------------------------------------------------------------- explore

  const explore = (spec) => {
    const [a, b] = [byId("explore-x").value, byId("explore-y").value];
    const kept = rows(a, b).filter((row) => row.value !== null && row.other !== null);
    spec.data.values = kept;
    for (const [name, channel, field] of [[a, "x", "value"], [b, "y", "other"]]) {
      const q = quantities.get(name);
      spec.encoding[channel].title = q.label + (q.unit ? ` (${q.unit})` : "");
      const log = q.scale === "log" && kept.every((row) => row[field] > 0);
      spec.encoding[channel].scale = log ? { type: "log" } : { zero: false };
    }
    spec.encoding.tooltip[1].title = quantities.get(a).label;
    spec.encoding.tooltip[2].title = quantities.get(b).label;
    const used = kept.filter((row) => row.phase !== "collapsed");
    const rho = spearman(used.map((row) => row.value), used.map((row) => row.other));
    byId("explore-rho").textContent = Number.isFinite(rho)
      ? `Spearman ρ = ${number(rho)} over ${used.length} cells${used.length < kept.length ? " that did not collapse" : ""}.` : "";
  };

  const ranks = (values) => {
    const order = values.map((_, n) => n).sort((a, b) => values[a] - values[b]);
    const out = new Array(values.length);
    for (let i = 0; i < order.length;) {
      let j = i;
      while (j < order.length && values[order[j]] === values[order[i]]) j++;
      for (let k = i; k < j; k++) out[order[k]] = (i + j - 1) / 2;
      i = j;
    }
    return out;
  };

  const spearman = (a, b) => {
    if (a.length < 3) return NaN;
    const centred = (values) => { const r = ranks(values); const m = (r.length - 1) / 2; return r.map((v) => v - m); };
    const [x, y] = [centred(a), centred(b)];
    const dot = (p, q) => p.reduce((sum, v, n) => sum + v * q[n], 0);
    return dot(x, y) / Math.sqrt(dot(x, x) * dot(y, y));
  };

  for (const id of ["explore-x", "explore-y"]) {
    byId(id)?.addEventListener("change", () => drawAll((item) => item.kind === "explore"));
  }

  // ---------------------------------------------------------------- models

  const models = { page: 0, size: 25, sort: null, down: false, text: "" };
  const value = (column, n) => data.models.rows[column.name][n];

  const order = () => {
    const index = selected ? rowOf.get(selected) : -1;
    let found = [...data.models.cell.keys()];
    if (selected) found = found.filter((n) => data.models.cell[n] === index);
    const words = models.text.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) {
      found = found.filter((n) => {
        const own = data.models.columns.filter((c) => c.key).map((c) => `${c.label}=${value(c, n) ?? ""}`).join(" ").toLowerCase();
        return words.every((word) => own.includes(word));
      });
    }
    if (models.sort !== null) {
      const column = data.models.columns[models.sort];
      const sign = models.down ? -1 : 1;
      found.sort((a, b) => {
        const [p, q] = [value(column, a), value(column, b)];
        if (p === null || q === null) return (p === null) - (q === null) || a - b; // missing values last, either way
        return sign * (typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(String(q), "en", { numeric: true })) || a - b;
      });
    }
    return found;
  };

  const table = () => {
    if (!byId("rows")) return;
    const found = order();
    const pages = Math.max(1, Math.ceil(found.length / models.size));
    models.page = Math.min(models.page, pages - 1);
    const here = found.slice(models.page * models.size, (models.page + 1) * models.size);
    byId("rows").replaceChildren(...here.map((n) => {
      const index = data.models.cell[n];
      return make("tr", index === null ? {} : { "data-cell": cells.cell[index], on: { click: () => select(cells.cell[index]) } },
        ...data.models.columns.map((column) => {
          const content = value(column, n);
          const text = content === null ? "–" : typeof content === "number" && !column.key ? number(content) : String(content);
          return make("td", column.numeric ? {} : { class: "text" }, text);
        }));
    }));
    document.querySelectorAll("#models thead th").forEach((head, n) => {
      head.setAttribute("aria-sort", models.sort !== n ? "none" : models.down ? "descending" : "ascending");
    });
    byId("count").textContent = selected
      ? `${found.length} of ${cells.n[rowOf.get(selected)]} models of ${cells.label[rowOf.get(selected)]}`
      : `${found.length.toLocaleString("en")} of ${data.models.cell.length.toLocaleString("en")} models`;
    byId("clear").hidden = !selected;
    byId("page").textContent = `Page ${models.page + 1} of ${pages}`;
    byId("before").disabled = models.page === 0;
    byId("after").disabled = models.page >= pages - 1;
    byId("pager").hidden = pages === 1;
  };

  document.querySelectorAll("#models thead button").forEach((button, n) => button.addEventListener("click", () => {
    if (models.sort === n && models.down) models.sort = null;
    else if (models.sort === n) models.down = true;
    else [models.sort, models.down] = [n, false];
    models.page = 0;
    table();
  }));
  byId("find")?.addEventListener("input", (event) => { models.text = event.target.value; models.page = 0; table(); });
  byId("before")?.addEventListener("click", () => { models.page--; table(); });
  byId("after")?.addEventListener("click", () => { models.page++; table(); });
  byId("clear")?.addEventListener("click", () => select(""));

  // ---------------------------------------------------------------- start

  document.querySelectorAll("details").forEach((box) => box.addEventListener("toggle", () => {
    if (box.open) drawAll((item) => !views.has(item.id));
  }));
  dark.addEventListener("change", () => drawAll(() => true));
  addEventListener("resize", () => { if (!selected) panel(); });
  const asked = /^#cell=(.+)$/.exec(location.hash);
  let first = cells.cell.length === 1 ? cells.cell[0] : "";
  try { if (asked) first = decodeURIComponent(asked[1]); } catch { /* not ours */ }
  panel();
  table();
  drawAll(() => true).then(() => {
    if (first) select(first, true);
    document.documentElement.dataset.ready = "true";
  });
})();
