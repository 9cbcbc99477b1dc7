"use strict";

// Sorts a table by a column: its rows are one <tbody> each, so that what belongs to a row stays
// with it. Rows without a value come last.
function sortTable(button) {
  const head = button.closest("th");
  const table = head.closest("table");
  const column = Array.from(head.parentNode.children).indexOf(head);
  const first = button.dataset.first;
  const other = first === "descending" ? "ascending" : "descending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  for (const one of head.parentNode.children) one.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const value = (body) => body.rows[0].cells[column].dataset.value;
  const bodies = Array.from(table.tBodies);
  bodies.sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (left === undefined || right === undefined) {
      return (left === undefined) - (right === undefined);
    }
    const difference = Number(left) - Number(right);
    return sign * (Number.isNaN(difference) ? left.localeCompare(right) : difference);
  });
  for (const body of bodies) table.append(body);
}

// Shows a figure as large as the window. Escape and a click beside it close, as of any dialog.
function enlarge(button) {
  const dialog = document.getElementById("enlarged");
  dialog.setAttribute("aria-label", button.getAttribute("aria-label"));
  dialog.querySelector(".place").replaceChildren(button.querySelector("picture").cloneNode(true));
  dialog.showModal();
}

for (const button of document.querySelectorAll("button.sort")) {
  button.addEventListener("click", () => sortTable(button));
}
for (const button of document.querySelectorAll("button.enlarge")) {
  button.addEventListener("click", () => enlarge(button));
}
document.getElementById("enlarged").addEventListener("click", (event) => {
  if (event.target.tagName !== "BUTTON") event.currentTarget.close();
});
