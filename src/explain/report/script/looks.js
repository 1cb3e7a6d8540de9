// Tokens, patches or frames: the same boxes, in a line or over a picture.
const decoded = new Map();
function rowsOf(head) {
  if (!decoded.has(head)) {
    const bytes = atob(head.attention.data), rows = [], at = (n) => bytes.charCodeAt(n);
    for (let row = 0; row + 24 <= bytes.length; row += 24) {
      rows.push([0, 3, 6, 9, 12, 15, 18, 21].map((n) => [at(row + n) + 256 * at(row + n + 1), at(row + n + 2) / 255]));
    }
    decoded.set(head, rows);
  }
  return decoded.get(head);
}
function weightsOf(head, count) {
  const values = new Array(count).fill(0), coded = head.attention;
  if (state.view === "parts") head.why.parts.forEach((part) => { if (has(part.unit)) values[part.unit] += part.value; });
  else if (state.query !== null) rowsOf(head)[state.query].forEach(([key, weight]) => { values[key] += weight; });
  else list(coded.received).forEach((value, n) => { values[n] = value; });
  if (state.view !== "norm") return values;
  const normed = values.map((value, n) => value * coded.value_norm[n]), total = normed.reduce((sum, value) => sum + value, 0) || 1;
  return normed.map((value) => value / total);
}
function showLooks(head) {
  const all = units(), coded = head.attention && head.attention.data ? head.attention : null;
  const views = { weight: ["attention", coded], norm: ["norm-weighted", coded && list(coded.value_norm).length], parts: ["parts of the gate logit", head.why && list(head.why.parts).some((part) => has(part.unit))] };
  if (!views[state.view][1]) state.view = Object.keys(views).find((view) => views[view][1]) || "weight";
  if (!all.length || !views[state.view][1]) return panel("looks", missing(`heads.${headName(head)}.attention`, all.length ? "the attention of this head is not in the record" : "the record names no tokens"));
  const reading = state.view === "parts", again = () => showLooks(head);
  const values = weightsOf(head, all.length), top = Math.max(...values.map(Math.abs)) || 1;
  const rows = 1 + Math.max(0, ...all.map((unit) => (unit.grid ? unit.grid[0] : 0))), columns = 1 + Math.max(0, ...all.map((unit) => (unit.grid ? unit.grid[1] : 0)));
  const patches = all.some((unit) => has(unit.grid)), frames = all.filter((unit) => has(unit.seconds) && !unit.padding).length, over = patches || frames;
  const picture = data.pictures[state.shown], options = [], outside = h("div.beside");
  const view = h(`div.view.${patches ? "over.patches" : frames ? "over.frames" : "text"}`, {
    role: "listbox", "aria-label": reading ? "tokens with their parts of the gate logit" : "tokens; choose one to see what it looks at", style: { "--aspect": patches ? columns / rows : 3 },
  }, over && picture ? h("img", { src: picture, alt: "" }) : null);
  let seen = 0;
  all.forEach((unit, n) => {
    if (unit.padding) return;
    const value = values[n], size = Math.abs(value) / top, name = unitName(n), inside = has(unit.grid) || has(unit.seconds);
    const percent = (part) => `${100 * part}%`;
    const place = has(unit.grid) ? { left: percent(unit.grid[1] / columns), top: percent(unit.grid[0] / rows), width: percent(1 / columns), height: percent(1 / rows) }
      : has(unit.seconds) ? { left: percent(seen++ / frames), top: 0, width: percent(1 / frames), height: "100%" } : {};
    const edge = percent(patches ? 0.9 * Math.sqrt(size) : reading && !over ? size / 2 : size);
    const mass = h(`i.mass${reading ? (value < 0 ? ".minus" : ".plus") : ""}`, { "aria-hidden": "true", hidden: over && size < 1e-3 ? "" : null, style: patches ? { width: edge, height: edge } : { height: edge } });
    const chosen = n === state.query;
    options[n] = h(`span.unit${unit.special ? ".special" : ""}${over && !inside ? ".chip" : ""}`,
      { role: "option", "aria-selected": String(chosen), ...label(`${name}, ${reading ? "part" : "weight"} ${number(value, reading)}`), tabindex: n === (state.query || 0) ? 0 : -1, "data-unit": n, style: place },
      ...(over ? [inside ? mass : `${name} ${number(value, reading)}`] : [h(`span.room${reading ? ".both" : ""}`, mass), h("span.word", { dir: "auto" }, name)]));
    (over && !inside ? outside : view).append(options[n]);
  });
  const shown = Object.keys(options).map(Number);
  const choose = (n, keep) => {
    const scrolled = view.scrollTop;
    state.query = n === state.query && !keep ? null : n;
    again();
    document.querySelector("#looks .view").scrollTop = scrolled;
    document.querySelector(`#looks [data-unit="${n}"]`).focus({ preventScroll: true });
  };
  const unitOf = (event) => { const unit = event.target.closest("[data-unit]"); return unit ? Number(unit.dataset.unit) : null; };
  const box = h("div", {
    click(event) { if (!reading && unitOf(event) !== null) choose(unitOf(event)); },
    keydown(event) {
      const n = unitOf(event), at = shown.indexOf(n), line = patches ? columns : 10;
      const next = { ArrowRight: shown[at + 1], ArrowLeft: shown[at - 1], ArrowDown: shown[at + line], ArrowUp: shown[at - line], Home: shown[0], End: shown.at(-1) }[event.key];
      if (has(next)) {
        event.preventDefault();
        options.forEach((option, other) => option.setAttribute("tabindex", other === next ? 0 : -1));
        options[next].focus();
      } else if (!reading && n !== null && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        choose(n, true);
      }
    },
  }, view, outside.childElementCount ? outside : null);
  const who = state.query === null ? "mean over queries" : `“${unitName(state.query)}”`;
  const out = [h("div.tools", { role: "group", "aria-label": "what the bars show" },
    ...Object.entries(views).map(([id, [text, there]]) => button(text, id === state.view, () => { state.view = id; again(); }, there ? {} : { disabled: "", title: NOT })),
    reading ? null : button("mean over queries", state.query === null, () => { state.query = null; again(); })), box];
  if (reading) out.push(h("p", "What each token adds to (+) or takes from (−) the gate logit: the parts in the record. ", level("L1")));
  else {
    const of = (masses) => (!list(masses).length ? null : state.query !== null ? masses[state.query] : mean(masses.filter((_, n) => all[n] && !all[n].padding)));
    const kept = of(coded.kept_mass);
    out.push(h("p", h("bdi", who), `: sink mass ${number(of(coded.sink_mass))} on ${source.sinks || "special tokens"}; the eight largest keys hold ${number(kept)}. `, level("L0")));
    if (kept < 0.9) out.push(quiet(`Sparse view: the eight largest keys hold less than 90 %.${state.query === null ? " The mean over queries is exact, rows are not." : ""}`));
  }
  panel("looks", out, table(reading ? "parts by token" : `attention, ${who}`, ["place", "token", reading ? "part" : "weight"], shown.filter((n) => values[n] || shown.length <= 64).map((n) => [n, unitName(n), values[n]])));
}
