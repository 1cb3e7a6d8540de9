/** A curve over k with its inverse order and the band of random orders. */
function curve(title, ks, found) {
  const band = found.random || {}, low = list(band.lower), high = list(band.upper), inverse = list(found.inverse), order = list(found.values), last = order.length - 1;
  if (last < 0) return null;
  const all = [...order, ...low, ...high, ...inverse], floor = Math.min(...all), span = Math.max(...all) - floor || 1;
  const at = (v, n) => `${(46 + 360 * (ks[n] - ks[0]) / (ks[last] - ks[0] || 1)).toFixed(1)} ${(150 - 135 * (v - floor) / span).toFixed(1)}`;
  const path = (kind, values, end) => svg("path", { class: kind, d: `M${values.join("L")}${end || ""}` });
  const text = (x, y, anchor, words) => svg("text", { x, y, "text-anchor": anchor }, words);
  return h("div", h("strong", title), svg("svg", { class: "chart", viewBox: "0 0 420 190", role: "img", "aria-label": `${title}; the data table below holds the numbers` },
    path("rule", ["46 15", "46 150", "406 150"]), text(42, 19, "end", number(floor + span)), text(42, 150, "end", number(floor)), text(46, 166, "start", `k = ${ks[0]}`), text(406, 166, "end", `${ks[last]} heads`),
    ...(low.length ? [path("band", [...low.map(at), ...high.map(at).reverse()], "Z")] : []), ...(inverse.length ? [path("inverse", inverse.map(at))] : []), path("order", order.map(at)),
    text(46, 184, "start", "solid: this order · dashed: inverse · grey: 5-95 % of random orders")),
  table(title, ["k", "this order", "random 5 %", "random 95 %", "inverse"], order.map((v, n) => [ks[n], v, low[n], high[n], inverse[n]])));
}
/** Names and values of whatever a group holds. */
function leaves(value, name, rows) {
  if (value && typeof value === "object" && !list(value).every((entry) => typeof entry !== "object") || (value && value.constructor === Object)) {
    for (const [key, entry] of Object.entries(value)) leaves(entry, [name, words(list(value).length ? Number(key) + 1 : key)].filter(Boolean).join(", "), rows);
  } else rows.push([name, Array.isArray(value) ? value.map((entry) => number(entry)).join(", ") : value]);
  return rows;
}
function showTrust() {
  const found = trust(), residuals = source.heads.filter((head) => head.why && has(head.why.residual)).map((head) => Math.abs(head.why.residual));
  const out = [h("p", residuals.length ? `Gate logits add up to within ${number(Math.max(...residuals))}. ` : `Gate logits: ${NOT}. `, level("L1"))];
  for (const [key, title, rank] of [["faithfulness", "Faithfulness", "L2"], ["simulatability", "Can a reader tell the gate?", "L1"], ["agreement", "Agreement of the numbers", "L1"], ["stability", "Stability", "L1"]]) {
    out.push(h("p", h("strong", title), " ", level(rank)));
    if (!has(found[key])) out.push(missing(`trust.${key}`));
    else {
      const { comprehensiveness, sufficiency, k, order, ...others } = found[key], rest = key === "faithfulness" ? others : found[key];
      if (key === "faithfulness" && k) out.push(curve("comprehensiveness, higher is better", k, comprehensiveness || {}), curve("sufficiency, lower is better", k, sufficiency || {}));
      const rows = leaves(rest, "", []);
      if (rows.length) out.push(table(title, ["what", "value"], rows, rows.length <= 8));
    }
  }
  list(found.warnings).forEach((warning) => out.push(h("p", h("strong", "Warning: "), String(warning))));
  const holes = list(source.not_computed);
  if (holes.length) out.push(table(NOT, ["what", "why"], holes.map((hole) => (typeof hole === "string" ? [hole, ""] : [hole.field, hole.reason || ""]))));
  panel("trust", out);
}
