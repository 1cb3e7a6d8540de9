// Layers and heads: one stop for Tab, arrows inside.
const STATES = { on: "on", off: "off for this input", always_on: "always on", pruned: "removed for every input", collapsed: "collapsed" };
function said(head, flipped) {
  const role = mainRole(head), measure = mainMeasure(), effect = measure && measure.get(head);
  return [`layer ${head.layer} head ${head.head}`, STATES[head.state], `gate ${number(head.gate)}`,
    has(head.margin) && `margin ${signed(head.margin)}`, role && `${roleWords(role)} ${number(role.score)}`,
    has(effect) && `effect ${signed(effect)}`, flipped && "flipped in what-if"].filter(Boolean).join(", ");
}
function drawGrid(host, name, cellOf) {
  const small = layers > 16 || width > 16, cells = [], rows = [];
  for (let layer = layers - 1; layer >= 0; layer--) {
    const row = h("div", { role: "row" }, h("div", { role: "rowheader" }, `L${layer}`));
    for (let place = layer * width; place < (layer + 1) * width; place++) {
      cells[place] = cellOf(place);
      cells[place].dataset.place = place;
      row.append(cells[place]);
    }
    rows.push(row);
  }
  rows.push(h("div", { role: "row" }, ...[...Array(width + 1).keys()].map((n) => h("div", { role: "columnheader" }, n ? `H${n - 1}` : ""))));
  const stop = (place) => cells.forEach((cell, n) => cell.setAttribute("tabindex", n === place ? 0 : -1));
  stop(state.head === null ? (layers - 1) * width : state.head);
  host.replaceChildren(h(small ? "div.compact" : "div", {
    role: "grid", "aria-label": name, style: { "--heads": width, "--cell": small ? "15px" : layers > 8 ? "33px" : "40px" },
    click(event) {
      const cell = event.target.closest("[data-place]");
      if (cell) openCard(Number(cell.dataset.place), false);
    },
    keydown(event) {
      const place = Number(event.target.dataset.place), layer = Math.floor(place / width), head = place % width;
      const to = { ArrowLeft: [layer, head - 1], ArrowRight: [layer, head + 1], ArrowUp: [layer + 1, head], ArrowDown: [layer - 1, head], Home: [layer, 0], End: [layer, width - 1] }[event.key];
      const act = { Enter: openCard, " ": openCard, f: flip, F: flip }[event.key];
      if (!to && !act) return;
      event.preventDefault();
      if (act) return act(place, true);
      const inside = (n, count) => Math.min(count - 1, Math.max(0, n)), next = inside(to[0], layers) * width + inside(to[1], width);
      stop(next);
      cells[next].focus();
    },
  }, ...rows));
  return cells;
}
const short = (value, sign) => (!has(value) ? "n/c" : Math.abs(value) < 0.01 ? `${value < 0 ? "−" : sign ? "+" : ""}.00` : number(value, sign).replace(/^([+−]?)0\./, "$1."));
let cells = [];
function showGrid() {
  const measure = measureOf(state.measure), heads = source.heads;
  const scale = scaleOf(records.flatMap((one) => one.heads.map(measure.get)), measure.sign);
  cells = drawGrid(by("grid"), `heads, ${measure.name}, layer 0 at the bottom`, (place) => {
    const head = heads[place], role = mainRole(head), value = measure.get(head), flipped = state.flips.has(place), chosen = place === state.head;
    const gone = head.state === "pruned" || head.state === "collapsed";
    return h(`div.cell.${head.state}${flipped ? ".flipped" : ""}${chosen ? ".chosen" : ""}`,
      { role: "gridcell", "aria-selected": String(chosen), ...label(said(head, flipped)), style: gone ? {} : painted(scale, value) },
      role ? roleSign(role.role) : null, h("span.number", gone ? "×" : short(value, measure.sign)));
  });
  const roles = [...new Set(heads.map(mainRole).filter(has).map((role) => role.role))];
  by("grid-legend").replaceChildren(
    ...Object.keys(STATES).map((name) => [name, heads.filter((head) => head.state === name).length]).filter(([, count]) => count).map(([name, count]) => h("li", h(`span.cell.${name}`), `${STATES[name]} (${count})`)),
    ...roles.map((name) => h("li", roleSign(name), words(name))),
    ...(roles.length ? [] : [h("li.missing", heads.some((head) => head.roles && list(head.roles.dataset).length) ? "no head has a role on the data set" : `roles on a data set: ${NOT}`)]));
  by("grid-scale").replaceChildren(scale ? scaleBar(scale, `${measure.name}${measure.level ? ", " + measure.level : ""}; layer 0 at the bottom`) : missing(measure.id));
  const shown = MEASURES.filter((one) => computed(one));
  by("grid-table").replaceChildren(table("heads", ["head", "state", "reason", "role", "logit", "threshold", ...shown.map((one) => one.name)],
    heads.map((head) => [headName(head), head.state, head.reason, mainRole(head) && roleWords(mainRole(head)), head.logit, head.threshold, ...shown.map((one) => one.get(head))])));
}
const chooser = (name, measures, chosen, change) => h("label", name, h("select", { change: (event) => change(event.target.value) },
  ...measures.map((one) => h("option", { value: one.id, selected: one.id === chosen ? "" : null, disabled: records.some((shown) => computed(one, shown)) ? null : "" }, one.name))));
const gridTools = () => by("grid-tools").replaceChildren(
  chooser("colour ", MEASURES, state.measure, (id) => { state.measure = id; showGrid(); showCompare(); }),
  h("span.quiet", "arrows move, Enter opens, F flips, Escape comes back"));
