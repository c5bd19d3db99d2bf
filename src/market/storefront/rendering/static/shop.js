// Enhancements of the pages, which also work without them.
"use strict";

document.documentElement.classList.add("script");

// Search suggestions while typing.
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
        // Show no suggestions.
      }
    }, 150);
  });
}

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submit-on-change]")) event.target.form.requestSubmit();
});

// Replace the content of this page by that of another one.
function show(html) {
  const page = new DOMParser().parseFromString(html, "text/html");
  const focused = document.activeElement?.id;
  for (const id of ["main", "basket-count"]) {
    const here = document.getElementById(id);
    const there = page.getElementById(id);
    if (here && there) here.replaceWith(there);
  }
  document.title = page.title;
  const again = focused && document.getElementById(focused);
  (again || document.getElementById("main")).focus({ preventScroll: true });
}

// Change the basket without a reload.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("[data-partial]")) return;
  event.preventDefault();
  const fields = new URLSearchParams(new FormData(form, event.submitter));
  if (!fields.has("action")) fields.set("action", "set");
  try {
    // Not form.action, because the form has a button of that name.
    const response = await fetch(form.getAttribute("action"), { method: "POST", body: fields });
    show(await response.text());
  } catch {
    location.reload();
  }
});

// Send a form only once, however often its button is pressed.
document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-once]")) return;
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "true";
});
addEventListener("pageshow", () => {
  // With the back button, browsers restore the page as it was left.
  for (const form of document.querySelectorAll("[data-once]")) delete form.dataset.sent;
});

// Poll until the outcome of the order is known.
async function ask(address) {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    if (!document.querySelector("[data-pending]")) return;
    try {
      const response = await fetch(address);
      if (response.redirected) {
        location.replace(response.url);
        return;
      }
      if (response.status !== 202 && response.status !== 429 && response.status < 500) {
        show(await response.text());
        return;
      }
    } catch {
      // The shop cannot be reached. Try again.
    }
  }
}
const pending = document.querySelector("[data-pending]");
if (pending) ask(pending.dataset.pending);
