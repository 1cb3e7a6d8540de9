const effects = (head) => head.effects || {};
const toggled = (head) => (effects(head).toggle ? effects(head).toggle.frozen : null);
const MEASURES = [
  { id: "gate", name: "gate", get: (h) => h.gate },
  { id: "margin", name: "margin to the threshold", sign: true, get: (h) => h.margin },
  { id: "toggle", name: "measured effect (toggle)", sign: true, level: "L2", get: toggled },
  { id: "integrated", name: "integrated gate gradient", sign: true, level: "L1", get: (h) => effects(h).integrated_gate_gradient },
  { id: "gradient", name: "estimated effect (gate gradient)", sign: true, level: "L1", get: (h) => effects(h).gate_gradient },
  { id: "direct", name: "direct effect", sign: true, level: "L1", get: (h) => effects(h).direct },
  { id: "norm", name: "write norm", level: "L0", get: (h) => effects(h).write_norm },
  { id: "sink", name: "mean sink mass", level: "L0", get: (h) => (h.attention && list(h.attention.sink_mass).length ? mean(h.attention.sink_mass) : null) },
];
const measureOf = (id) => MEASURES.find((one) => one.id === id);
const computed = (measure, one = source) => one.heads.some((head) => has(measure.get(head)));
const EFFECTS = MEASURES.slice(2, 6);
const mainMeasure = () => EFFECTS.find((measure) => computed(measure));

const layers = records[0].model.layers, width = records[0].model.heads;
const state = { shown: 0, head: null, query: null, measure: null, waterfall: null, view: "weight", flips: new Set() };
/** The record shown. */
let source = records[0];
const placeOf = (head) => head.layer * width + head.head;
const trust = () => source.trust || source;
const units = (one = source) => list(one.input.units);
const inputText = (one) => units(one).filter((unit) => !unit.special && !unit.padding && has(unit.text)).map((unit) => unit.text).join(" ").replaceAll(" ##", "");
function unitName(n) {
  const unit = units()[n] || {};
  return typeof n === "string" ? words(n) : has(unit.text) ? (unit.text.trim() === "" ? "␣" : unit.text)
    : has(unit.grid) ? `row ${unit.grid[0]}, column ${unit.grid[1]}` : has(unit.seconds) ? `${[unit.seconds].flat()[0]} s` : `#${n}`;
}
const valueOf = (one = source) => (one.output ? one.output.value_selected : null);
function metricName() {
  const { metric, target_name, distractor_name, target = null, distractor = null } = source.output || {};
  const [of, against] = [target_name ?? target, distractor_name ?? distractor];
  return `${words(metric || "not named")}${has(of) ? ` (${of}${has(against) ? ` against ${against}` : ""})` : ""}`;
}
