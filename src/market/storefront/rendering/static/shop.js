// What makes the pages nicer. Every page works without it.
"use strict";

document.documentElement.classList.add("script");

// Suggestions below the search field, while one types.
const search = document.querySelector("[data-suggestions]");
if (search) {
  const list = document.getElementById(search.getAttribute("list"));
  let timer;
  let latest = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    const q = search.value.trim();
    if (q.length < 2) return;
    timer = setTimeout(async () => {
      const number = ++latest;
      try {
        const response = await fetch(`${search.dataset.suggestions}?q=${encodeURIComponent(q)}`);
        if (!response.ok || number !== latest) return;
        const { names } = await response.json();
        if (number !== latest) return;
        list.replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name })));
      } catch {
        // No suggestions then.
      }
    }, 150);
  });
}

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submit-on-change]")) event.target.form.requestSubmit();
});
