/* The page "Explore the standings": measured errors of solvers as curves and as a table.
   Reads `window.standings`, which docs/builder/standings.py makes. No dependencies. */
"use strict";
(() => {
  const root = document.getElementById("explore");
  const data = window.standings;
  if (!root || !data) return;

  const KINDS = { deterministic: "deterministic", stochastic: "stochastic" };
  const COLOURS = 8; // of explore.css
  const SHAPES = ["circle", "square", "triangle", "diamond"];
  const NAME = 1.3; // height of a name beside its curve, in em
  const COMPARED = ["ddim", "heun", "ddim(1)", "euler_maruyama"]; // shown at first

  // ------------------------------------------------------------ data

  const measureOf = (problem) => data.measures[problem.measure];
  const kindOf = (problem) => (problem.stochastic ? "stochastic" : "deterministic");
  const unique = (values) => [...new Set(values)];
  const problems = (fields) => data.problems.filter((problem) =>
    Object.entries(fields).every(([k, v]) =>
      (k === "kind" ? kindOf(problem) : problem[k]) === v));

  const budgetsOf = (problem) => unique(Object.values(problem.curves)
    .flatMap((grids) => Object.values(grids).flat().map((point) => point[0]))
    .filter((budget) => budget !== null)).sort((a, b) => a - b);

  /* Grids of the problem. "ends" is that of solvers that choose their own steps. */
  const gridsOf = (problem) => unique(Object.values(problem.curves)
    .flatMap(Object.keys)).filter((grid) => grid !== "ends");

  const errorOf = (point) => point.error ?? Infinity;

  /* [{name, points}], each solver's points by their evaluations. With grid "best" a
     point is that of least error over the grids for its budget. */
  function curvesOf(problem, grid) {
    return Object.entries(problem.curves).map(([name, grids]) => {
      const points = new Map();
      for (const [label, numbers] of Object.entries(grids)) {
        if (grid !== "best" && label !== grid && label !== "ends") continue;
        for (const values of numbers) {
          const point = { grid: label, solver: name };
          data.point.forEach((field, i) => { point[field] = values[i] ?? null; });
          const known = points.get(point.budget);
          if (!known || errorOf(point) < errorOf(known)) points.set(point.budget, point);
        }
      }
      return { name, points: [...points.values()].sort((a, b) => a.nfe - b.nfe) };
    }).filter((curve) => curve.points.length);
  }

  /* The rows of the table: points for the budget, and those of solvers that choose
     their own steps where they stay within it. */
  const ranked = (curves, budget) => curves
    .flatMap((curve) => curve.points)
    .filter((point) => point.budget === budget
      || (point.budget === null && point.nfe <= budget))
    .sort((a, b) => errorOf(a) - errorOf(b));

  // ------------------------------------------------------------ text

  const number = (value, digits = 3) => {
    if (value === 0) return "0";
    return value >= 1e-4 && value < 1e3
      ? value.toPrecision(digits) : value.toExponential(digits - 1);
  };
  const count = (value) => String(Math.round(10 * value) / 10);
  const halfWidth = (point) => (point.low === null ? null : (point.high - point.low) / 2);
  const withInterval = (point, unit) => {
    if (point.error === null) return "diverged";
    const half = halfWidth(point);
    return `error ${number(point.error)}${half === null ? "" : ` ± ${number(half, 2)}`} ${unit}`;
  };
  const steps = (n) => `${n} step${n === 1 ? "" : "s"}`;
  const gridText = (point) => (point.grid === "ends"
    ? "with steps of its own choice" : `${steps(point.steps)} of ${point.grid}`);
  const describe = (point, unit) =>
    `${point.solver}, ${count(point.nfe)} evaluations, ${withInterval(point, unit)}, `
    + gridText(point);

  /* Code that makes the grid, such as karras(3) of 16 steps. A solver that chooses its
     own steps has one from end to end. */
  function gridCode(point) {
    if (point.grid === "ends") return "dj.grids.uniform(schedule, 1)";
    const [, family, argument] = point.grid.match(/^(\w+)(?:\((.*)\))?$/);
    return `dj.grids.${family}(schedule, ${point.steps}${argument ? `, ${argument}` : ""})`;
  }

  // ------------------------------------------------------------ elements

  function make(namespace) {
    return (tag, attributes = {}, ...children) => {
      const element = document.createElementNS(namespace, tag);
      for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (value !== null && value !== undefined && value !== false) {
          element.setAttribute(name, value === true ? "" : value);
        }
      }
      element.append(...children.filter((child) => child !== null));
      return element;
    };
  }
  const html = make("http://www.w3.org/1999/xhtml");
  const svg = make("http://www.w3.org/2000/svg");

  /* A name that can break after its underscores and before its parenthesis. */
  const breakable = (name) => name.split(/(?<=_)|(?=\()/)
    .flatMap((part, i) => (i ? [html("wbr"), part] : [part]));

  function shape(slot, x, y, size) {
    const attributes = { class: `mark colour-${slot % COLOURS}` };
    const r = size / 2;
    switch (SHAPES[slot % SHAPES.length]) {
      case "square":
        return svg("rect", { ...attributes, x: x - r, y: y - r, width: size, height: size });
      case "triangle":
        return svg("path", { ...attributes,
          d: `M${x},${y - 1.2 * r}l${1.2 * r},${2.1 * r}h${-2.4 * r}z` });
      case "diamond":
        return svg("path", { ...attributes,
          d: `M${x},${y - 1.3 * r}l${1.3 * r},${1.3 * r}l${-1.3 * r},${1.3 * r}l${-1.3 * r},${-1.3 * r}z` });
      default:
        return svg("circle", { ...attributes, cx: x, cy: y, r });
    }
  }
  const lineClass = (slot) =>
    `line colour-${slot % COLOURS} dash-${Math.floor(slot / COLOURS) % 4}`;
  const swatch = (slot) => svg("svg",
    { class: "swatch", viewBox: "0 0 28 12", "aria-hidden": "true" },
    svg("path", { class: lineClass(slot), d: "M1,6H27" }), shape(slot, 14, 6, 8));

  // ------------------------------------------------------------ state

  /* `chosen` has a solver, or null, for each colour, by kind of solvers. */
  const state = {
    target: "mixture_2d", schedule: "vp_linear", kind: "deterministic", grid: "best", budget: 16,
    sort: "error", descending: false, chosen: {},
  };
  let cursor = null; // {solver, budget} of the marked point
  let drawn = [];    // [{point, x, y}] of the chart, in pixels

  const known = (value, values) => (values.includes(value) ? value : values[0]);
  const options = {
    target: () => unique(data.problems.map((problem) => problem.target)),
    schedule: () => unique(problems({ target: state.target }).map((p) => p.schedule)),
    kind: () => unique(problems({ target: state.target, schedule: state.schedule })
      .map(kindOf)),
    grid: () => ["best", ...gridsOf(problem())],
    budget: () => budgetsOf(problem()),
  };
  const problem = () => problems(
    { target: state.target, schedule: state.schedule, kind: state.kind })[0];

  /* Replace values that the data do not have. */
  function settle() {
    for (const field of ["target", "schedule", "kind", "grid"]) {
      state[field] = known(state[field], options[field]());
    }
    const budgets = options.budget();
    if (!budgets.includes(state.budget)) {
      state.budget = budgets.filter((budget) => budget <= state.budget).pop() ?? budgets[0];
    }
    if (!COLUMNS.some((column) => column.key === state.sort)) state.sort = "error";
    state.chosen[state.kind] ??= firstChoice(true);
  }

  /* The best solvers at the budget, at first with two well-known ones. */
  function firstChoice(compared) {
    const rows = ranked(curvesOf(problem(), state.grid), state.budget)
      .map((point) => point.solver);
    return unique([...rows.slice(0, 5),
      ...(compared ? COMPARED.filter((name) => rows.includes(name)) : [])]);
  }

  const slotOf = (name) => state.chosen[state.kind].indexOf(name);

  function toggle(name, on) {
    const chosen = state.chosen[state.kind];
    const slot = chosen.indexOf(name);
    if (on && slot < 0) {
      const free = chosen.indexOf(null);
      chosen[free < 0 ? chosen.length : free] = name;
    } else if (!on && slot >= 0) {
      chosen[slot] = null;
      while (chosen.length && chosen[chosen.length - 1] === null) chosen.pop();
    }
  }

  function readHash() {
    const values = new URLSearchParams(location.hash.slice(1));
    if (!values.has("target")) return false;
    for (const field of ["target", "schedule", "kind", "grid"]) {
      state[field] = values.get(field);
    }
    state.budget = Number(values.get("budget")) || 16;
    const sort = values.get("sort") ?? "error";
    state.descending = sort.startsWith("-");
    state.sort = sort.replace("-", "");
    settle();
    if (values.has("solvers")) {
      const names = values.get("solvers").split(";").map((name) => name || null);
      // Empty colours are kept, and equal names once.
      const seen = new Set();
      state.chosen[state.kind] = names.map((name) => {
        if (!data.solvers[name] || seen.has(name)) return null;
        seen.add(name);
        return name;
      });
    }
    return true;
  }

  function writeHash() {
    const values = new URLSearchParams({
      target: state.target, schedule: state.schedule, kind: state.kind,
      grid: state.grid, budget: state.budget,
      sort: (state.descending ? "-" : "") + state.sort,
      solvers: state.chosen[state.kind].map((name) => name ?? "").join(";"),
    });
    history.replaceState(history.state, "", `#${values}`);
  }

  // ------------------------------------------------------------ controls

  const selects = {};
  function control(field, label, text) {
    const select = html("select", { id: `explore-${field}`, onchange: () => {
      state[field] = field === "budget" ? Number(select.value) : select.value;
      update();
    } });
    selects[field] = { select, text };
    return html("div", { class: "control" },
      html("label", { for: `explore-${field}` }, label), select);
  }

  const controls = html("div", { class: "controls" },
    control("target", "Target", (v) => data.targets[v].title),
    control("schedule", "Schedule", (v) => data.schedules[v].title),
    control("kind", "Solvers", (v) => KINDS[v]),
    control("grid", "Grid", (v) => (v === "best" ? "the best" : v)),
    control("budget", "Evaluations, at most", String));

  function drawControls() {
    for (const [field, { select, text }] of Object.entries(selects)) {
      const values = options[field]().map(String);
      if (values.join() !== [...select.options].map((o) => o.value).join()) {
        select.replaceChildren(...values.map((value) =>
          html("option", { value }, text(value))));
      }
      select.value = String(state[field]);
    }
  }

  // ------------------------------------------------------- least error

  const leastError = html("p", { class: "least", "aria-live": "polite" });
  const code = html("code");
  const codeBlock = html("pre", { class: "code", tabindex: "0", role: "region",
    "aria-label": "Code of the solver of least error" }, code);

  /* Solvers whose interval overlaps that of the first. */
  function overlapping([top, ...others]) {
    const names = others.filter((row) => row.low !== null && row.low <= top.high)
      .map((row) => row.solver);
    if (!names.length) return [];
    const listed = names.slice(0, 4).join(", ");
    const more = names.length > 4 ? ` and ${names.length - 4} more` : "";
    return [" ", html("span", { class: "overlapping" },
      `Their 95 % intervals overlap with its own: ${listed}${more}.`)];
  }

  function drawLeast(rows, unit) {
    const top = rows[0];
    const text = !top || top.error === null ? "No solver has an error here." : null;
    codeBlock.hidden = text !== null;
    if (text !== null) {
      leastError.replaceChildren(text);
      return;
    }
    leastError.replaceChildren(
      `Least error at most ${state.budget} evaluations: `,
      html("strong", {}, top.solver), `, ${withInterval(top, unit)}, ${gridText(top)}.`,
      ...overlapping(rows));
    const schedule = data.schedules[state.schedule].code;
    code.textContent = [
      "import diffjax as dj",
      "",
      schedule ? `schedule = ${schedule}` : "# schedule is that of the trained network",
      `solver = ${data.solvers[top.solver].code}`,
      `grid = ${gridCode(top)}`,
      "# dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=shape)",
    ].join("\n");
  }

  // ------------------------------------------------------------ chart

  const canvas = svg("svg", { "aria-hidden": "true" });
  const tooltip = html("div", { class: "tooltip", "aria-hidden": "true", hidden: true });
  const chart = html("div", {
    class: "chart", tabindex: "0", role: "application",
    "aria-roledescription": "chart", "aria-describedby": "explore-keys",
    onkeydown: onKey,
    onfocus: () => { if (!cursor) point(startOfKeys()); },
    onblur: () => point(null),
    onpointermove: (event) => point(nearest(event)),
    onpointerdown: (event) => point(nearest(event)),
    onpointerleave: () => { if (document.activeElement !== chart) point(null); },
  }, canvas, tooltip);
  const keys = html("p", { class: "keys", id: "explore-keys" },
    "Point at a curve. Or give the chart the focus: the left and right arrows move along "
    + "a curve, up and down change the curve.");
  const readout = html("p", { class: "readout", "aria-live": "polite" });

  const chosenCurves = (curves) => curves
    .filter((curve) => slotOf(curve.name) >= 0)
    .sort((a, b) => slotOf(a.name) - slotOf(b.name));

  const finite = (points) => points.filter((point) => point.error > 0);

  function drawChart(curves) {
    const { floor } = problem();
    const { title, unit } = measureOf(problem());
    const chosen = chosenCurves(curves);
    const em = parseFloat(getComputedStyle(chart).fontSize) || 12;
    const width = Math.max(chart.clientWidth, 200);
    const wide = width > 40 * em;
    const height = Math.round(Math.min(Math.max(0.62 * width, 23 * em), 36 * em));
    const left = 4.4 * em;
    const top = 2 * em;
    const bottom = 3.4 * em;
    const named = wide && chosen.length * NAME * em <= height - top - bottom;
    const right = named ? 12 * em : 0.8 * em;

    const all = finite(curves.flatMap((curve) => curve.points));
    const budgeted = all.filter((point) => point.budget !== null);
    const shown = [...budgeted, ...finite(chosen.flatMap((curve) => curve.points))];
    const nfes = shown.map((point) => point.nfe);
    const errors = shown.map((point) => point.error);
    const xs = [0.88 * Math.min(...nfes), 1.12 * Math.max(...nfes)];
    const ys = [0.6 * Math.min(...errors, floor || Infinity),
      1.8 * Math.min(Math.max(...errors), 10)];
    const scale = ([low, high], from, to) => (value) =>
      from + (to - from) * Math.log(value / low) / Math.log(high / low);
    const x = scale(xs, left, width - right);
    const y = scale(ys, height - bottom, top);

    canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
    canvas.setAttribute("width", width);
    canvas.setAttribute("height", height);
    const layer = [];
    layer.push(svg("defs", {}, svg("clipPath", { id: "explore-clip" },
      svg("rect", { x: left - 6, y: top - 6, width: width - left - right + 12,
        height: height - top - bottom + 12 }))));

    // Axes.
    const text = (content, at, attributes = {}) =>
      svg("text", { x: at[0], y: at[1], ...attributes }, content);
    for (let power = Math.ceil(Math.log10(ys[0])); 10 ** power <= ys[1]; power++) {
      const h = y(10 ** power);
      layer.push(svg("path", { class: "rule", d: `M${left},${h}H${width - right}` }),
        svg("text", { x: left - 0.5 * em, y: h + 0.35 * em, "text-anchor": "end" }, "10",
          svg("tspan", { dy: -0.4 * em, class: "power" }, String(power).replace("-", "−"))));
    }
    let free = -Infinity;
    for (const budget of budgetsOf(problem())) {
      const at = x(budget);
      layer.push(svg("path", { class: budget === state.budget ? "budget" : "rule",
        d: `M${at},${top}V${height - bottom}` }));
      const half = 0.35 * em * String(budget).length;
      if (at - half > free) {
        layer.push(text(budget, [at, height - bottom + 1.3 * em], {
          "text-anchor": "middle", class: budget === state.budget ? "now" : null }));
        free = at + half + 0.2 * em;
      }
    }
    layer.push(
      text("evaluations of the denoiser", [(left + width - right) / 2, height - 0.6 * em],
        { "text-anchor": "middle", class: "axis" }),
      text(`${title} (${unit})`, [0.2 * em, em], { class: "axis" }),
      svg("path", { class: "frame", d: `M${left},${top}V${height - bottom}H${width - right}` }));
    if (floor) {
      const h = y(floor);
      layer.push(svg("path", { class: "floor", d: `M${left},${h}H${width - right}` }),
        text("two exact sets", [left + 0.4 * em, h - 0.4 * em]));
    }

    // Curves, those that are not chosen in grey and below.
    const path = (points) => points.map((p, i) =>
      `${i ? "L" : "M"}${x(p.nfe).toFixed(1)},${y(p.error).toFixed(1)}`).join("");
    const inside = svg("g", { "clip-path": "url(#explore-clip)" });
    for (const curve of curves.filter((c) => slotOf(c.name) < 0)) {
      inside.append(svg("path", { class: "line other", d: path(finite(curve.points)) }));
    }
    drawn = [];
    const groups = [];
    for (const curve of chosen) {
      const slot = slotOf(curve.name);
      const points = finite(curve.points);
      const group = svg("g", { "data-solver": curve.name });
      group.append(svg("path", { class: lineClass(slot), d: path(points) }));
      for (const p of points) {
        const at = { point: p, x: x(p.nfe), y: y(p.error) };
        if (p.low !== null) {
          group.append(svg("path", { class: `bar colour-${slot % COLOURS}`,
            d: `M${at.x},${y(Math.max(p.low, ys[0] / 10))}V${y(p.high)}` }));
        }
        group.append(shape(slot, at.x, at.y, 0.6 * em));
        drawn.push(at);
      }
      groups.unshift(group); // The first is drawn last, on top.
    }
    inside.append(...groups);
    layer.push(inside);
    if (named) layer.push(...names(chosen, x, y, { em, top, bottom: height - bottom,
      edge: width - right }));
    layer.push(svg("g", { class: "cursor" }));
    canvas.replaceChildren(...layer);
    chart.setAttribute("aria-label", `${title} of ${chosen.length} solvers against `
      + "evaluations of the denoiser, both axes logarithmic");
    drawCursor();
  }

  /* Names beside the ends of the curves, moved apart where they would overlap. */
  function names(chosen, x, y, { em, top, bottom, edge }) {
    const ends = chosen.map((curve) => ({ name: curve.name, p: finite(curve.points).pop() }))
      .filter((end) => end.p)
      .map((end) => ({ ...end, h: Math.min(Math.max(y(end.p.error), top), bottom) }))
      .sort((a, b) => a.h - b.h);
    ends.forEach((end, i) => {
      end.at = Math.max(end.h, i ? ends[i - 1].at + NAME * em : top);
    });
    for (let i = ends.length - 1, limit = bottom; i >= 0; i--, limit = ends[i + 1].at - NAME * em) {
      ends[i].at = Math.min(ends[i].at, limit);
    }
    return ends.flatMap(({ name, p, h, at }) => {
      const short = name.length > 21 ? `${name.slice(0, 20)}…` : name;
      const slot = slotOf(name);
      return [
        svg("path", { class: `lead colour-${slot % COLOURS}`,
          d: `M${x(p.nfe) + 0.4 * em},${h}L${edge + 0.9 * em},${at}` }),
        svg("text", { x: edge + 1.1 * em, y: at + 0.35 * em,
          class: `name colour-${slot % COLOURS}` }, short),
      ];
    });
  }

  const same = (a, b) => a && b && a.solver === b.solver && a.budget === b.budget;
  const position = () => drawn.findIndex((entry) => same(entry.point, cursor));

  function drawCursor() {
    const group = canvas.querySelector(".cursor");
    const entry = drawn[position()];
    tooltip.hidden = !entry;
    if (!group) return;
    if (!entry) {
      group.replaceChildren();
      return;
    }
    group.replaceChildren(svg("circle", { cx: entry.x, cy: entry.y, r: 9 }));
    const { unit } = measureOf(problem());
    tooltip.replaceChildren(html("strong", {}, entry.point.solver),
      html("br"), `${count(entry.point.nfe)} evaluations`,
      html("br"), withInterval(entry.point, unit),
      html("br"), gridText(entry.point));
    const box = tooltip.getBoundingClientRect();
    const over = entry.y > box.height + 14;
    tooltip.style.left =
      `${Math.min(Math.max(entry.x - box.width / 2, 0), chart.clientWidth - box.width)}px`;
    tooltip.style.top = `${over ? entry.y - box.height - 14 : entry.y + 14}px`;
  }

  /* Mark a point, and say its numbers. */
  function point(next) {
    if (next ? same(next, cursor) : cursor === null) return;
    cursor = next && { solver: next.solver, budget: next.budget };
    readout.textContent = next ? describe(next, measureOf(problem()).unit) : "";
    drawCursor();
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let [best, least] = [null, 60 ** 2];
    for (const entry of drawn) {
      const distance = (entry.x - px) ** 2 + (entry.y - py) ** 2;
      if (distance < least) [best, least] = [entry.point, distance];
    }
    return best ?? (document.activeElement === chart ? drawn[position()]?.point ?? null : null);
  }

  function startOfKeys() {
    return (drawn.find((entry) => entry.point.budget === state.budget) ?? drawn[0])?.point
      ?? null;
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !drawn.length) return;
    const curves = unique(drawn.map((entry) => entry.point.solver))
      .map((name) => drawn.map((e) => e.point).filter((p) => p.solver === name));
    const now = drawn[position()]?.point ?? startOfKeys();
    const c = curves.findIndex((points) => points[0].solver === now.solver);
    const i = curves[c].indexOf(now);
    const onCurve = (k) => curves[c][Math.min(Math.max(k, 0), curves[c].length - 1)];
    const across = (k) => {
      const points = curves[(k + curves.length) % curves.length];
      return points.reduce((a, b) =>
        (Math.abs(b.nfe - now.nfe) < Math.abs(a.nfe - now.nfe) ? b : a));
    };
    const moves = {
      ArrowRight: () => onCurve(i + 1), ArrowLeft: () => onCurve(i - 1),
      Home: () => onCurve(0), End: () => onCurve(curves[c].length - 1),
      ArrowDown: () => across(c + 1), ArrowUp: () => across(c - 1),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    point(moves[event.key]());
  }

  // ------------------------------------------------------------ legend

  const legend = html("div", { class: "legend" });
  const choose = (text, names) => html("button", { type: "button", class: "small",
    onclick: () => { state.chosen[state.kind] = names(); update(); } }, text);
  const buttons = html("div", { class: "buttons" },
    choose("The best five", () => firstChoice(false)),
    choose("All", () => [...new Set([...state.chosen[state.kind].filter(Boolean),
      ...Object.keys(problem().curves)])]),
    choose("None", () => []));
  const solvers = html("fieldset", {}, html("legend", {}, "Solvers in colour"), buttons,
    legend);

  function drawLegend(curves) {
    const names = curves.map((curve) => curve.name);
    if (names.join(";") !== [...legend.querySelectorAll("input")].map((i) => i.value).join(";")) {
      legend.replaceChildren(...names.map((name) => html("label", {},
        html("input", { type: "checkbox", value: name, onchange: (event) => {
          toggle(name, event.target.checked);
          update();
        } }), html("span", { class: "key" }), html("span", {}, ...breakable(name)))));
    }
    for (const input of legend.querySelectorAll("input")) {
      const slot = slotOf(input.value);
      input.checked = slot >= 0;
      input.nextSibling.replaceChildren(...(slot >= 0 ? [swatch(slot)] : []));
    }
  }

  // ------------------------------------------------------------ table

  const COLUMNS = [
    { key: "solver", label: "Solver", value: (p) => p.solver },
    { key: "error", label: "Error", value: errorOf },
    { key: "interval", label: "± 95 %", value: (p) => halfWidth(p) ?? 0 },
    { key: "ratio", label: "× least", value: errorOf },
    { key: "nfe", label: "Evaluations", value: (p) => p.nfe },
    { key: "steps", label: "Steps", value: (p) => (p.grid === "ends" ? Infinity : p.steps) },
    { key: "grid", label: "Grid", value: (p) => p.grid },
  ];

  const caption = html("caption");
  const heads = COLUMNS.map((column) => html("th", { scope: "col", class: `column-${column.key}` },
    html("button", { type: "button", onclick: () => {
      state.descending = state.sort === column.key && !state.descending;
      state.sort = column.key;
      update();
    } }, column.label)));
  const body = html("tbody");
  const table = html("div", { class: "rows", tabindex: "0", role: "region",
    "aria-label": "Ranking of the solvers" },
  html("table", { class: "ranking" }, caption, html("thead", {}, html("tr", {}, ...heads)),
    body));

  function drawTable(rows, unit) {
    const column = COLUMNS.find(({ key }) => key === state.sort);
    const sign = state.descending ? -1 : 1;
    const sorted = rows.map((row) => [column.value(row), row]).sort(([a], [b]) =>
      sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true })
        : (a === b ? 0 : a - b)));
    heads.forEach((head, i) => {
      if (COLUMNS[i].key !== state.sort) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    });
    const least = rows.length ? rows[0].error : null;
    body.replaceChildren(...sorted.map(([, row]) => {
      const slot = slotOf(row.solver);
      const { address, code } = data.solvers[row.solver];
      const name = html("code", {}, ...breakable(row.solver));
      const cells = {
        error: row.error === null ? "diverged" : number(row.error),
        interval: row.low === null ? "" : number(halfWidth(row), 2),
        ratio: row.error === null || !least ? "" : (row.error / least).toPrecision(3),
        nfe: count(row.nfe),
        steps: row.grid === "ends" ? "its own" : row.steps,
        grid: row.grid === "ends" ? "its own" : row.grid,
      };
      return html("tr", { "data-solver": row.solver },
        html("th", { scope: "row", class: "column-solver" },
          html("span", { class: "key" }, slot >= 0 ? swatch(slot) : ""),
          address ? html("a", { href: `../${address}`, title: code }, name) : name),
        ...COLUMNS.slice(1).map(({ key }) => html("td", { class: `column-${key}` },
          ...breakable(String(cells[key])))));
    }));
    caption.textContent = `${measureOf(problem()).title} (${unit}) at most `
      + `${state.budget} evaluations: ${data.targets[state.target].title}, `
      + `${data.schedules[state.schedule].title}, ${state.kind} solvers, `
      + (state.grid === "best" ? "each on its best grid." : `grid ${state.grid}.`);
  }

  // ------------------------------------------------------------ all

  function draw() {
    settle();
    const curves = curvesOf(problem(), state.grid);
    const rows = ranked(curves, state.budget);
    const { unit } = measureOf(problem());
    drawControls();
    drawLeast(rows, unit);
    drawLegend(curves);
    drawTable(rows, unit);
    drawChart(curves);
  }

  function update() {
    cursor = null;
    readout.textContent = "";
    draw();
    writeHash();
  }

  root.append(controls, leastError, codeBlock, chart, readout, keys, solvers, table,
    html("p", { class: "about" }, `Measured by bench_solvers on ${data.date}, `
      + `${data.samples} starts in float64 (${data.device}, jax ${data.jax}).`));
  root.classList.add("ready");
  readHash();
  draw();
  window.addEventListener("hashchange", () => { if (readHash()) draw(); });
  new ResizeObserver(() => drawChart(curvesOf(problem(), state.grid))).observe(chart);
})();
