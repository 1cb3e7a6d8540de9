function showEffects(head) {
  const found = head.effects;
  if (!found) return panel("effects", missing("heads.effects"));
  const toggle = found.toggle || {}, ablation = toggle.ablation || "";
  const rows = [["write norm", number(found.write_norm), "L0"], ["direct effect", found.direct, `L1${found.direct_linearised ? ", linearised" : ""}`], ["gate gradient", found.gate_gradient, "L1"],
    ["toggle, other gates frozen", toggle.frozen, "L2", ablation, toggle.interval && interval(toggle.interval)], ["integrated gate gradient", found.integrated_gate_gradient, "L1"],
    ["toggle, later gates decide anew", toggle.redecided, "L2", ablation], ["repair: direct − toggle", found.repair, "L2", ablation], ["Shapley value", found.shapley, "L2", ablation]];
  panel("effects", h("p", `+ supports m, − works against it. m: ${metricName()}.`),
    table(`effects of ${headName(head)}`, ["quantity", "value", "level", "ablation", "interval"], rows.filter((row, n) => n < 4 || has(row[1])).map(([name, value, rank, by, range]) => [name, signed(value), rank, by || "", range || ""]), true),
    list(found.flipped_gates).length ? h("p", `Gates that flip with it where they decide anew: ${headNames(found.flipped_gates)}.`) : null);
}
function showWaterfall() {
  const m = valueOf(), choices = EFFECTS.filter((one) => computed(one));
  if (!choices.length || !has(m)) return panel("waterfall", missing("heads.effects"));
  const measure = choices.find((one) => one.id === state.waterfall) || choices[0], of = measure.get;
  const running = source.heads.filter((head) => head.gate !== 0 && has(of(head))).sort((a, b) => Math.abs(of(b)) - Math.abs(of(a)));
  const total = (heads) => heads.reduce((sum, head) => sum + of(head), 0), base = source.output.value_without_heads;
  const rest = { name: has(base) ? "residual" : "base and residual", value: m - total(running) - (base || 0) };
  const rows = [has(base) ? { name: "base: no heads", value: base } : rest, ...running.slice(0, 10).map((head) => ({ name: headName(head), value: of(head) })),
    ...(running.length > 10 ? [{ name: `${running.length - 10} other heads`, value: total(running.slice(10)) }] : []), ...(has(base) ? [rest] : []), { name: "m", value: m, total: true }];
  panel("waterfall", h("div.tools", chooser("by ", choices, measure.id, (id) => { state.waterfall = id; showWaterfall(); }), level(measure.level)), addUp(`m by ${measure.name}`, rows),
    quiet(`m: ${metricName()}. ${has(base) ? "Residual" : "Base and residual: embeddings, feed-forward blocks, biases, and"} what numbers of single heads leave unexplained.`),
    table(`effects by ${measure.name}`, ["head", "effect"], [...running.map((head) => [headName(head), of(head)]), [rest.name, rest.value], ["m", m]]));
}
