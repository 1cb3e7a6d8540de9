function showPairs() {
  const pairs = list(source.pairs);
  if (!pairs.length) return panel("pairs", missing("pairs"));
  const kind = pairs[0].index, value = new Map(), title = (place) => headName(source.heads[place]);
  for (const pair of pairs) if (pair.index === kind) {
    const [a, b] = pairPlaces(pair);
    value.set(`${a},${b}`, pair.value).set(`${b},${a}`, pair.value);
  }
  const names = [...new Set(pairs.flatMap(pairPlaces))].sort((a, b) => a - b).slice(0, 20), scale = scaleOf([...value.values()], true);
  const cell = (a, b) => h("td", { style: painted(scale, value.get(`${a},${b}`)) }, a === b ? "·" : short(value.get(`${a},${b}`), true));
  const matrix = h("table.matrix", h("caption", `${words(kind)}: + they need each other, − they stand in for each other`),
    h("thead", h("tr", h("td"), ...names.map((place) => h("th", { scope: "col" }, title(place))))),
    h("tbody", ...names.map((a) => h("tr", h("th", { scope: "row" }, title(a)), ...names.map((b) => cell(a, b))))));
  const top = pairs.slice().sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  panel("pairs", h("div.columns",
    h("div", region("matrix of pairs", matrix), scaleBar(scale, words(kind))),
    h("div", h("p", "Ten strongest pairs ", level("L2")), h("ol", ...top.slice(0, 10).map((pair) => h("li", `${headName(pair.a)} and ${headName(pair.b)}: ${signed(pair.value)}, ${pair.value < 0 ? "redundant" : "complementary"}`))),
      table("pairs of heads", ["head", "other", "index", "value", "ablation", "interval"], top.map((pair) => [headName(pair.a), headName(pair.b), pair.index, signed(pair.value), pair.ablation, pair.interval ? interval(pair.interval) : ""])))));
}
