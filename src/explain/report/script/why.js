function showWhy(head) {
  const why = head.why, out = [], reason = head.reason ? ` by ${words(head.reason)}` : "";
  out.push(has(head.logit) && has(head.margin) ? h("p", `Logit ${signed(head.logit)}, ${number(Math.abs(head.margin))} ${head.margin < 0 ? "below" : "above"} the threshold ${signed(head.threshold)}`,
    has(head.margin_std) ? ` (${number(Math.abs(head.margin_std))} spreads of the calibration set)` : "", has(head.rank) ? `; rank ${head.rank}` : "", `; decided${reason}. `, level("L1"))
    : h("p", `${STATES[head.state]}${reason}: no gate logit was compared for it.`));
  if (list(head.rivals).length) out.push(h("p", `Rivals at the cut: ${head.rivals.map((rival) => `${headName(rival)} (${signed(rival.logit)})`).join(", ")}.`));
  if (!why) return panel("why", out, missing("heads.why", "this policy does not score heads by the input"));
  const parts = list(why.parts).map((part) => ({ name: [has(part.unit) ? unitName(part.unit) : null, part.feature ? words(part.feature) : null].filter(has).join(" · "), value: part.value }));
  const left = parts.slice(8).reduce((sum, part) => sum + part.value, why.rest || 0), residual = why.residual || 0;
  out.push(addUp(`gate logit of ${headName(head)}`, [{ name: `base: ${words(why.reference || source.policy.reference || "reference")}`, value: why.base }, ...parts.slice(0, 8), { name: "rest", value: left },
    ...(Math.abs(residual) > 1e-4 ? [{ name: "residual", value: residual }] : []), { name: "logit", value: head.logit, total: true }], head.threshold),
  quiet(`Dashed: the threshold. Residual of the sum ${number(why.residual)}.${has(why.control_share) ? ` ${share(why.control_share, 1)} of the size of the features can move gates of this layer.` : ""}`));
  const moved = why.flip && list(why.flip.removed);
  out.push(moved && moved.length ? h("p", h("bdi", `Nearest flip: ${moved.map((n) => `“${unitName(n)}”`).join(", ")} moved to the reference turn${moved.length > 1 ? "" : "s"} it ${head.gate ? "off" : "on"} (${why.flip.minimal ? "minimal" : "greedy"}, ${why.flip.verified ? "" : "not "}verified by running the gate).${why.flip.in_model ? ` Taken out of the model's input instead, they ${why.flip.in_model.flips ? "flip" : "do not flip"} it.` : ""}`))
    : missing("heads.why.flip", "no flip was searched for"),
  table(`parts of the logit of ${headName(head)}`, ["part", "value"], [["base", why.base], ...parts.map((part) => [part.name, part.value]), ["rest", why.rest], ["residual", why.residual], ["logit", head.logit], ["threshold", head.threshold]]));
  panel("why", out);
}
