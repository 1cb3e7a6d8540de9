"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Tabs: one sentence at a time. Without this script all of them are shown.
  const articles = [...document.querySelectorAll(".sentence")];
  const tabs = [...document.querySelectorAll("[role=tab]")];
  function choose(number, focus) {
    tabs.forEach((tab, n) => {
      tab.setAttribute("aria-selected", String(n === number));
      tab.tabIndex = n === number ? 0 : -1;
    });
    articles.forEach((article, n) => { article.hidden = n !== number; });
    if (focus) tabs[number].focus();
  }
  if (tabs.length > 1) {
    document.querySelector(".tabs").hidden = false;
    tabs.forEach((tab, n) => {
      tab.addEventListener("click", () => choose(n, false));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) {
          event.preventDefault();
          choose((n + step + tabs.length) % tabs.length, true);
        }
      });
    });
    choose(0, false);
  }

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

  const reasons = {
    score: "its logit against the threshold",
    floor: "the floor of heads for every input",
    fixed: "the same for all calibration inputs",
    mask: "the static mask",
    removed: "it is physically gone",
    confidence: "the confidence of the first run",
  };
  const words = { on: "on", off: "off", always_on: "always on", pruned: "never on", collapsed: "collapsed" };

  function showHead(article, layer, head) {
    const sentence = data.sentences[Number(article.dataset.sentence)];
    const card = article.querySelector(".card");
    card.replaceChildren(element("h3", "", `Layer ${layer}, head ${head}`));
    const place = layer * data.heads + head;
    card.append(element("p", "", `Score ${data.scores[layer][head].toPrecision(3)}.`));
    for (const [policy, heads] of Object.entries(sentence.decisions)) {
      const decision = heads[place];
      let line = `${policy}: ${words[decision.state] || decision.state}`;
      if (reasons[decision.reason]) line += `, by ${reasons[decision.reason]}`;
      card.append(element("p", "", line + "."));
      if (!decision.why) continue;
      const { base, parts, rest } = decision.why;
      card.append(element("p", "",
        `Logit ${signed(decision.logit)} = ${signed(base)} for the average sentence ` +
        `${signed(parts.reduce((sum, part) => sum + part.value, 0))} for the parts shown ` +
        `${signed(rest)} for the rest; threshold ${signed(decision.threshold)}.`));
      const byPlace = new Map(parts.map((part) => [part.unit, part.value]));
      const largest = Math.max(...parts.map((part) => Math.abs(part.value)), 1e-9);
      const line2 = element("div", "words");
      sentence.tokens.forEach((token, n) => {
        const word = element("span", "word", token);
        if (byPlace.has(n)) {
          const value = byPlace.get(n);
          const share = Math.min(1, Math.abs(value) / largest);
          const [r, g, b] = value < 0 ? [140, 120, 200] : [240, 150, 50];
          word.style.backgroundColor = `rgba(${r}, ${g}, ${b}, ${(dark.matches ? .65 : .75) * share})`;
          word.append(element("small", "", signed(value)));
        }
        line2.append(word);
      });
      card.append(line2);
    }
    card.hidden = false;
    for (const cell of article.querySelectorAll("[role=gridcell]")) {
      cell.classList.toggle("chosen",
        Number(cell.dataset.layer) === layer && Number(cell.dataset.head) === head);
    }
  }
  function hideHead(article) {
    article.querySelector(".card").hidden = true;
    article.querySelectorAll(".chosen").forEach((cell) => cell.classList.remove("chosen"));
  }

  for (const grid of document.querySelectorAll("[role=grid]")) {
    const cells = new Map();
    for (const cell of grid.querySelectorAll("[role=gridcell]")) {
      cells.set(`${cell.dataset.layer},${cell.dataset.head}`, cell);
    }
    const article = grid.closest(".sentence");
    const layers = data.scores.length;
    function move(layer, head) {
      const next = cells.get(`${Math.min(layers - 1, Math.max(0, layer))},${Math.min(data.heads - 1, Math.max(0, head))}`);
      if (!next) return;
      cells.forEach((cell) => cell.setAttribute("tabindex", "-1"));
      next.setAttribute("tabindex", "0");
      next.focus();
    }
    cells.forEach((cell) => {
      const layer = Number(cell.dataset.layer), head = Number(cell.dataset.head);
      if (article) cell.addEventListener("click", () => showHead(article, layer, head));
      cell.addEventListener("keydown", (event) => {
        const to = {
          ArrowLeft: [layer, head - 1], ArrowRight: [layer, head + 1],
          ArrowUp: [layer + 1, head], ArrowDown: [layer - 1, head],
          Home: [layer, 0], End: [layer, data.heads - 1],
        }[event.key];
        if (to) {
          event.preventDefault();
          move(...to);
        } else if (article && (event.key === "Enter" || event.key === " ")) {
          event.preventDefault();
          showHead(article, layer, head);
        } else if (article && event.key === "Escape") {
          hideHead(article);
        }
      });
    });
  }

  // Open with something to look at: the gate's most sentence-dependent head.
  articles.forEach((article, n) => {
    let best = null;
    for (const heads of Object.values(data.sentences[n].decisions)) {
      heads.forEach((decision, place) => {
        if (!decision.why || (decision.state !== "on" && decision.state !== "off")) return;
        const moved = Math.abs(decision.logit - decision.why.base);
        if (!best || moved > best.moved) best = { moved, place };
      });
    }
    if (best) showHead(article, Math.floor(best.place / data.heads), best.place % data.heads);
  });
})();
