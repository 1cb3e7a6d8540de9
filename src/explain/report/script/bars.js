/** Bars that add up: rows {name, value}; `total` rows start at 0. `line` is drawn across them. */
function addUp(name, rows, line) {
  let sum = 0;
  const spans = rows.map((row) => {
    const from = row.total ? 0 : sum;
    sum = row.total ? row.value : sum + row.value;
    return [from, sum];
  });
  const ends = [0, ...spans.flat(), ...(has(line) ? [line] : [])];
  const low = Math.min(...ends), span = Math.max(...ends) - low || 1, at = (value) => `${100 * (value - low) / span}%`;
  return h("div.bars", { role: "img", "aria-label": `${name}: ${rows.map((row) => `${row.name} ${signed(row.value)}`).join(", ")}` }, ...rows.flatMap((row, n) => {
    const [from, to] = spans[n], bold = row.total ? ".total-row" : "";
    return [h(`bdi${bold}`, { title: row.name }, row.name),
      h("span.track", h(`i.${row.total ? "total" : row.value < 0 ? "minus" : "plus"}`, { style: { left: at(Math.min(from, to)), width: `${100 * Math.abs(to - from) / span}%` } }),
        has(line) ? h("i.line", { style: { left: at(line) } }) : null),
      h(`span.number${bold}`, number(row.value, !row.total))];
  }));
}
