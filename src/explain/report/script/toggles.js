const pairPlaces = (pair) => [placeOf(pair.a), placeOf(pair.b)];
const synergy = (a, b) => list(source.pairs).find((pair) => pair.index === "synergy" && pairPlaces(pair).includes(a) && pairPlaces(pair).includes(b));
function flip(place) {
  if (!has(toggled(source.heads[place]))) return;
  if (!state.flips.delete(place)) state.flips.add(place);
  showGrid();
  cells[place].focus({ preventScroll: true });
  showToggles();
  showCardTools();
}
function showToggles() {
  const m = valueOf(), some = source.heads.find((head) => has(toggled(head)));
  if (!some || !has(m)) return panel("toggles", missing("heads.effects.toggle"));
  const change = (head) => (head.gate === 0 ? toggled(head) : -toggled(head)), way = (head) => (head.gate === 0 ? "on" : "off");
  const chosen = [...state.flips].map((place) => source.heads[place]);
  const out = [h("p", "Open a head and press Flip, or F in the grid. ", level("L2")),
    h("div.tools", ...chosen.map((head) => button(`${headName(head)} ${way(head)} ×`, null, () => flip(placeOf(head)), label(`take back the flip of ${headName(head)}`))),
      chosen.length ? button("reset", null, () => { state.flips.clear(); showRecord(); }) : null)];
  if (chosen.length) {
    const known = chosen.flatMap((a, n) => chosen.slice(n + 1).map((b) => (a.gate && b.gate ? synergy(placeOf(a), placeOf(b)) : null))).filter(has);
    const together = known.reduce((sum, pair) => sum + pair.value, 0), after = m + together + chosen.reduce((sum, head) => sum + change(head), 0);
    const exact = chosen.length === 1 || (chosen.length === 2 && known.length === 1);
    out.push(addUp("m with the flips", [{ name: "m now", value: m, total: true }, ...chosen.map((head) => ({ name: headName(head), value: change(head) })), ...(known.length ? [{ name: "together", value: together }] : []), { name: "m then", value: after, total: true }], 0),
      h("p", `${exact ? "Measured" : "Estimated from single toggles and known pairs"}: m goes from ${number(m)} to ${number(after)}${m * after < 0 ? ", its sign changes" : ""}. `, level(exact ? "L2" : "L1")),
      table("flips", ["head", "flip", "change of m"], [...chosen.map((head) => [headName(head), way(head), change(head)]), ["all", "", after - m]]));
  }
  panel("toggles", out, quiet(`m: ${metricName()}; ablation ${words(some.effects.toggle.ablation)}; other gates frozen.`),
    table("every toggle", ["head", "flip", "effect", "m then"], source.heads.filter((head) => has(toggled(head))).sort((a, b) => Math.abs(toggled(b)) - Math.abs(toggled(a))).map((head) => [headName(head), way(head), toggled(head), m + change(head)])));
}
