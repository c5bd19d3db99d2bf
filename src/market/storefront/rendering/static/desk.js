// Enhancements of the desk's pages, which also work without them.
"use strict";

// Show a picture as soon as its address was typed.
for (const field of document.querySelectorAll("[data-preview]")) {
  const picture = document.getElementById(field.dataset.preview);
  const none = document.querySelector("[data-no-picture]");
  const broken = document.querySelector("[data-broken-picture]");
  picture.addEventListener("load", () => (broken.hidden = true));
  picture.addEventListener("error", () => (broken.hidden = none.hidden === false));
  field.addEventListener("change", () => {
    const address = field.value.trim();
    none.hidden = address !== "";
    picture.hidden = address === "";
    broken.hidden = true;
    if (address) picture.src = address;
  });
}
