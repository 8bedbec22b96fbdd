// The page works without this; with it, lists follow what is typed, and commands can be copied.
"use strict";

// Replace an element by the one of the same id in another page of ours.  The browser parses the
// page into a document in which no script runs.
function follow(form, id) {
  let waiting = null;
  let asking = null;
  const load = () => {
    const fields = new URLSearchParams(new FormData(form));
    for (const [name, value] of [...fields]) if (!value) fields.delete(name);
    const query = fields.toString();
    const url = form.getAttribute("action") + (query ? "?" + query : "");
    if (asking) asking.abort();
    asking = new XMLHttpRequest();
    asking.open("GET", url);
    asking.responseType = "document";
    asking.setRequestHeader("Accept", "text/html");
    asking.onload = () => {
      const page = asking.response;
      const found = page && page.getElementById(id);
      if (!found) return;
      document.getElementById(id).replaceChildren(...found.childNodes);
      history.replaceState(null, "", url);
      enliven(document.getElementById(id));
    };
    asking.send();
  };
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(load, 120);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(waiting);
    load();
  });
}

// A button behind each command that copies it, where the browser lets pages do so.
function copies(code) {
  if (!navigator.clipboard) return;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy: " + code.textContent);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  code.after(button);
}

// A box that chooses all, and buttons that can be pressed once something is chosen.
function choose(form) {
  const boxes = [...form.querySelectorAll("td.check input")];
  const head = form.querySelector("th.check");
  if (!head || !boxes.length) return;
  const all = document.createElement("input");
  all.type = "checkbox";
  all.setAttribute("aria-label", "Choose all on this page");
  head.replaceChildren(all);
  const settle = () => {
    const chosen = boxes.filter((box) => box.checked).length;
    all.checked = chosen === boxes.length;
    all.indeterminate = chosen > 0 && chosen < boxes.length;
    for (const button of form.querySelectorAll("[data-chosen]")) {
      button.disabled = button.dataset.chosen === "one" ? chosen !== 1 : chosen === 0;
    }
  };
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
    settle();
  });
  form.addEventListener("change", settle);
  settle();
}

function enliven(part) {
  part.querySelectorAll("[data-copy]").forEach(copies);
  part.querySelectorAll("form[data-choose]").forEach(choose);
}

document.querySelectorAll("form[data-live]").forEach((form) => follow(form, form.dataset.live));
enliven(document);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, select")) return;
  const field = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (!field) return;
  event.preventDefault();
  field.focus();
  field.select();
});
