// Continue an import automatically until it is done or stopped. Without JavaScript, the merchant presses a button for each step.
"use strict";

function pause(seconds) {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

async function proceed(form) {
  let stopped = false;
  form.addEventListener("submit", () => {
    stopped = true;
  });
  const unreachable = form.querySelector(".import-unreachable");
  let wait = Number(form.dataset.wait);
  for (;;) {
    await pause(wait);
    if (stopped) return;
    const fields = new URLSearchParams(new FormData(form));
    fields.set("step", form.dataset.step);
    // Shorter steps, so that the progress is shown more often.
    fields.set("brief", "true");
    wait = 3;
    try {
      const response = await fetch(form.getAttribute("action"), { method: "POST", body: fields });
      if (response.status === 429 || response.status >= 500) {
        wait = Number(response.headers.get("retry-after")) || wait;
        throw new Error(`status ${response.status}`);
      }
      const html = await response.text();
      if (stopped) return;
      const page = new DOMParser().parseFromString(html, "text/html");
      const next = page.querySelector("form[data-step]");
      if (!next) {
        document.getElementById("main").replaceWith(page.getElementById("main"));
        document.title = page.title;
        (document.getElementById("import-title") || document.getElementById("main")).focus();
        return;
      }
      form.elements.job.value = next.elements.job.value;
      form.dataset.step = next.dataset.step;
      document.getElementById("import-progress").replaceWith(page.getElementById("import-progress"));
      document.title = page.title;
      wait = Number(next.dataset.wait);
      unreachable.hidden = true;
    } catch {
      unreachable.hidden = false;
    }
  }
}

const steps = document.querySelector("form[data-step]");
if (steps) proceed(steps);
