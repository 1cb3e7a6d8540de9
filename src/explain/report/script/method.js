function showMethod() {
  const rows = [];
  for (const group of ["library", "model", "output", "policy", "budget", "run_time"]) leaves(source[group], words(group), rows);
  leaves({ schema: source.schema_version, created: source.created, seeds: source.seeds, mode: source.mode, "input sha256": source.input.sha256, "registry of roles": trust().registry_version, sinks: source.sinks,
    ablations: [...new Set(source.heads.map((head) => effects(head).toggle && effects(head).toggle.ablation).filter(Boolean))].join(", ") || null }, "", rows);
  const there = rows.filter((row) => has(row[1]) && row[1] !== "");
  panel("method", h("dl", ...there.map(([name, value]) => h("div", h("dt", name), h("dd", String(value))))), data.left_out.map((text) => h("p.missing", text)),
    none(`${rows.filter((row) => !there.includes(row)).map((row) => row[0]).join(", ") || "nothing"}`));
}
