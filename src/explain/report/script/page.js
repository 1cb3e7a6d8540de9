function showRecord() {
  source = records[state.shown];
  const budget = source.budget || {}, flops = budget.flops_selected ?? budget.flops_run;
  const title = data.title || inputText(source) || "Why are these heads on?";
  by("title").textContent = title;
  document.title = `headkit: ${title.slice(0, 60)}`;
  by("facts").replaceChildren(...[
    [source.model.name || "model", ""], [`${number(budget.active)} of ${layers * width}`, "heads on"], [has(flops) && has(budget.flops_dense) ? share(flops, budget.flops_dense) : NOT, "of dense FLOPs"],
    [has(valueOf()) ? signed(valueOf()) : NOT, `m: ${metricName()}`], [source.policy.name, "policy"], [number(source.input.length), patchesOrTokens()],
  ].map(([value, name]) => h("li", h("b", value), ` ${name}`)));
  by("summary").replaceChildren(...data.summaries[state.shown].map((line) => h("li", { dir: "auto" }, `${line.text} `, line.level ? level(line.level) : null)));
  by("inputs").replaceChildren(...(records.length < 2 ? [] : records.map((_, n) => button(`input ${"AB"[n]}`, n === state.shown, () => { state.shown = n; state.query = null; showRecord(); }))));
  [showGrid, showWaterfall, showToggles, showPairs, showTrust, showMethod].forEach((show) => show());
  if (state.head !== null) openCard(state.head, false);
}
const patchesOrTokens = () => (units().some((unit) => unit.grid) ? "patches" : units().some((unit) => has(unit.seconds)) ? "frames" : "tokens");

// Open with something to look at: the strongest head that can be explained.
const main = mainMeasure();
state.measure = (main || MEASURES[computed(MEASURES[1]) ? 1 : 0]).id;
const told = ["why", "attention", "layer"].map((part) => source.heads.filter((head) => has(head[part]))).find((heads) => heads.length);
const strength = (head) => Math.abs(measureOf(state.measure).get(head) || 0);
state.head = placeOf(told.reduce((best, head) => (strength(head) > strength(best) ? head : best)));
gridTools();
showRecord();
showCompare();
document.activeElement.blur();
scrollTo(0, 0);

// On paper every drawer is open.
let shut = [];
addEventListener("beforeprint", () => { shut = [...document.querySelectorAll("details:not([open])")]; shut.forEach((one) => { one.open = true; }); });
addEventListener("afterprint", () => shut.forEach((one) => { one.open = false; }));
