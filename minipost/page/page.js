// The numbers of a token beside it, from the table under its answer: by mouse, by a tap, by keyboard.
"use strict";
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);

function show(token) {
  const answer = token.closest(".answer");
  const table = answer && answer.querySelector("table");
  if (!table) return;
  const place = Array.prototype.indexOf.call(token.parentNode.querySelectorAll("i"), token);
  const head = table.rows[0].cells, row = table.rows[place + 1];
  if (!row) return;
  tip.textContent = Array.from(row.cells, (cell, k) =>
    k ? head[k].textContent + "  " + cell.textContent : "token  " + cell.textContent).join("\n");
  tip.hidden = false;
  const at = token.getBoundingClientRect();
  const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = Math.max(4, left) + window.scrollX + "px";
  tip.style.top = at.bottom + window.scrollY + 6 + "px";
}

for (const kind of ["mouseover", "click", "focusin"])
  document.addEventListener(kind, (event) => {
    const token = event.target.closest && event.target.closest(".toks i");
    if (token) show(token);
    else tip.hidden = true;
  });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") tip.hidden = true;
});
