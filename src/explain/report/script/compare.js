function showCompare() {
  const [a, b] = records;
  if (!b) return panel("compare", none(`one input was explained; headkit explain --compare adds a second.`));
  if (b.model.layers !== layers || b.model.heads !== width) return panel("compare", none(`the models differ in layers or heads.`));
  const measure = measureOf(state.measure), box = h("div");
  const differences = a.heads.map((head, place) => (has(measure.get(head)) && has(measure.get(b.heads[place])) ? measure.get(b.heads[place]) - measure.get(head) : null));
  const scale = scaleOf(differences, true), changed = a.heads.filter((head, place) => head.state !== b.heads[place].state);
  drawGrid(box, `difference of ${measure.name}, B minus A`, (place) => {
    const head = a.heads[place], other = b.heads[place], value = differences[place];
    return h(`div.cell${head.state !== other.state ? ".always_on" : ""}`, { role: "gridcell", ...label(`layer ${head.layer} head ${head.head}, A ${STATES[head.state]}, B ${STATES[other.state]}, difference ${signed(value)}`), style: painted(scale, value) },
      h("span.number", short(value, true)));
  });
  panel("compare", records.map((one, n) => h("p", h("bdi", `${"AB"[n]}: ${inputText(one) || one.input.id}`), has(valueOf(one)) ? ` (m ${number(valueOf(one))})` : "")),
    h("p", `B − A. A thick border: the state differs${changed.length ? ` (${changed.length} heads: ${headNames(changed.slice(0, 12))}${changed.length > 12 ? ", …" : ""})` : " (none does)"}.`),
    box, scale ? scaleBar(scale, `B − A, ${measure.name}`) : missing(measure.id),
    table("comparison", ["head", "A", "B", "state in A", "state in B", "B − A"], a.heads.map((head, place) => [headName(head), measure.get(head), measure.get(b.heads[place]), head.state, b.heads[place].state, differences[place]])));
}
