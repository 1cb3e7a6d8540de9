const showCardTools = () => by("card-tools").replaceChildren(...(state.head === null ? [] : [
  button(state.flips.has(state.head) ? "Take the flip back" : "Flip", state.flips.has(state.head), () => { flip(state.head); by("flip").focus(); }, { id: "flip", disabled: has(toggled(source.heads[state.head])) ? null : "" }),
  button("Close", null, closeCard, { id: "close" })]));
function openCard(place, focus) {
  if (place !== state.head) state.query = null;
  state.head = place;
  showGrid();
  const head = source.heads[place];
  by("card-title").textContent = `Layer ${head.layer}, head ${head.head}`;
  by("card-said").textContent = said(head);
  by("card-body").hidden = false;
  showCardTools();
  [showWhy, showLooks, showRoles, showEffects].forEach((show) => show(head));
  (focus ? by("card") : cells[place]).focus({ preventScroll: !focus });
}
function closeCard() {
  const before = cells[state.head];
  state.head = null;
  by("card-title").textContent = "Head card";
  by("card-said").textContent = "Choose a head in the grid.";
  by("card-body").hidden = true;
  showCardTools();
  before.classList.remove("chosen");
  before.setAttribute("aria-selected", "false");
  before.focus();
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.head !== null) closeCard(); });
