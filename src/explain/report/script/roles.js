const OKABE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#5b6470"];
const GLYPHS = "previous←0 next→0 self•0 positional↔0 offset↔0 delimiter§5 sink▼5 register▼5 inactive∅7 broad≈7 globalness≈7 confident!6 duplicate=1 induction↻1 suppression⊖3 copying⊕3 rare★6 same_row─4 same_column│4 object□4 verticality┃5 diag╲4 monoton⇘4 alignment⋈3 coreference↺2 retrieval?2 local◦4 global◯4 synta↑2"
  .split(" ").map((entry) => [entry.slice(0, -2), entry.at(-2), OKABE[entry.at(-1)]]);
function roleSign(name) {
  const [, glyph, colour] = GLYPHS.find(([part]) => name.includes(part)) || [0, name.slice(0, 2), OKABE[2]];
  return h("span.role", { style: { "border-bottom-color": colour } }, glyph);
}
const roleWords = (role) => words([role.role, role.variant].filter(Boolean).join(" "));
const mainRole = (head) => (head.roles && list(head.roles.dataset).find((role) => role.assigned)) || null;

function showRoles(head) {
  const found = head.roles || {};
  const side = (title, what, column, said) => h("div", h("p", h("strong", title), " ", level("L0")),
    list(found[what]).length ? table(`roles, ${title}`, ["role", "score", "nulls", "95 % interval", "rows", column], found[what].slice(0, 8).map((role) =>
      [roleWords(role), role.assessed === false ? "not assessed" : role.score, list(role.null).map((zero) => `${words(zero.name)} ${number(zero.value)}`).join(", "), interval(role.interval), role.sample && role.sample.rows, said(role)]), true)
      : missing(`heads.roles.${what}`));
  panel("roles", h("div.columns",
    side("this input", "input", "data set", (role) => (has(role.agrees) ? (role.agrees ? "agrees" : "departs") : "")),
    side("the data set", "dataset", "label", (role) => (role.assigned ? "assigned" : `unassigned${role.reason ? `: ${role.reason}` : ""}`))),
  list(found.dataset).length && !mainRole(head) ? h("p", "Unassigned: no role passes its threshold, its nulls and its smallest sample.") : null);
}
