"use strict";
(() => {
  // One method alone in every figure, and back.
  const focusButtons = [...document.querySelectorAll("button.focus")];
  let focused = null;
  function focus(name) {
    focused = focused === name ? null : name;
    document.body.classList.toggle("focused", focused !== null);
    for (const element of document.querySelectorAll(".m")) {
      element.classList.toggle("lit", focused !== null && element.classList.contains(focused));
    }
    for (const button of focusButtons) {
      button.setAttribute("aria-pressed", String(button.dataset.focus === focused));
    }
  }
  for (const button of focusButtons) button.addEventListener("click", () => focus(button.dataset.focus));

  // The part of the report that is on the screen.
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const [name, link] of links) {
        if (name === entry.target.id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  for (const part of document.querySelectorAll("main > section")) watcher.observe(part);

  // The browser of samples. What a model wrote only ever becomes text: textContent, never markup.
  const source = document.getElementById("data");
  if (source === null) return;
  const { methods, puzzles, verdicts, samples } = JSON.parse(source.textContent);
  const PAGE = 24;
  const chosen = { method: -1, verdict: -1, puzzle: -1 };
  let shown = PAGE;
  const list = document.getElementById("list");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const select = document.getElementById("filter-puzzle");

  function make(tag, name, text) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  const fits = ([method, puzzle, verdict], without) =>
    (without === "method" || chosen.method < 0 || chosen.method === method) &&
    (without === "puzzle" || chosen.puzzle < 0 || chosen.puzzle === puzzle) &&
    (without === "verdict" || chosen.verdict < 0 || chosen.verdict === verdict);

  function card([method, puzzle, verdict, tokens, text, equation]) {
    const item = make("li", "sample");
    const head = make("p", "sample-head");
    head.append(make("span", "sample-puzzle", puzzles[puzzle]));
    head.append(make("span", verdict === correct ? "verdict correct" : "verdict wrong", verdicts[verdict]));
    head.append(make("span", "sample-from", methods[method].label));
    item.append(head, make("pre", "", text));
    const foot = [`${tokens} tokens`, methods[method].source];
    if (equation) foot.unshift(`= ${equation}`);
    item.append(make("p", "sample-foot", foot.join(" · ")));
    return item;
  }
  const correct = verdicts.indexOf("correct");

  function chips(kind, names) {
    const box = document.getElementById(`filter-${kind}`);
    return ["all", ...names].map((name, index) => {
      const button = make("button", "", name);
      button.type = "button";
      button.dataset.value = String(index - 1);
      const tally = make("span", "tally");
      button.append(tally);
      button.addEventListener("click", () => choose(kind, index - 1));
      box.append(button);
      return { button, tally, value: index - 1 };
    });
  }
  const filters = { method: chips("method", methods.map((method) => method.label)), verdict: chips("verdict", verdicts) };
  ["all puzzles", ...puzzles].forEach((name, index) => {
    const option = make("option", "", name);
    option.value = String(index - 1);
    select.append(option);
  });

  function choose(kind, value) {
    chosen[kind] = value;
    shown = PAGE;
    draw();
  }
  function step(by) {
    const next = chosen.puzzle + by;
    choose("puzzle", next < -1 ? puzzles.length - 1 : next >= puzzles.length ? -1 : next);
  }
  function draw() {
    const found = samples.filter((sample) => fits(sample));
    found.sort((one, other) => one[1] - other[1] || one[0] - other[0]);
    list.replaceChildren(...found.slice(0, shown).map(card));
    count.textContent = `${Math.min(shown, found.length)} of ${found.length} samples`;
    more.hidden = found.length <= shown;
    select.value = String(chosen.puzzle);
    for (const [kind, place] of [["method", 0], ["verdict", 2]]) {
      const near = samples.filter((sample) => fits(sample, kind));
      for (const { button, tally, value } of filters[kind]) {
        button.setAttribute("aria-pressed", String(chosen[kind] === value));
        tally.textContent = String(value < 0 ? near.length : near.filter((sample) => sample[place] === value).length);
      }
    }
  }
  select.addEventListener("change", () => choose("puzzle", Number(select.value)));
  document.getElementById("puzzle-before").addEventListener("click", () => step(-1));
  document.getElementById("puzzle-next").addEventListener("click", () => step(1));
  more.addEventListener("click", () => { shown += PAGE; draw(); });
  const browser = document.getElementById("browser");
  browser.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === select) return;
    if (event.key === "," || event.key === ".") {
      step(event.key === "." ? 1 : -1);
      event.preventDefault();
    } else if (event.key === "Escape") {
      chosen.method = chosen.verdict = -1;
      choose("puzzle", -1);
    }
  });
  browser.hidden = false;
  draw();
})();
