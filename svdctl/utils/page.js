"use strict";
const collator = new Intl.Collator("en", { numeric: true });
const valueOf = (cell, numbers) => {
  if (numbers) return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "" || text === "-" ? null : text;
};
const compare = (one, other, sign) => {
  if (one === null || other === null) return (one === null) - (other === null);
  if (typeof one === "string") return sign * collator.compare(one, other);
  return sign * ((one > other) - (one < other));
};
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const numbers = "numbers" in head.dataset;
    const orders = numbers ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
    const order = orders[(orders.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
    for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
    const values = new Map(rows.map((row) => [row, valueOf(row.cells[column], numbers)]));
    const sign = order === "ascending" ? 1 : -1;
    const sorted = [...rows];
    if (order !== "none") sorted.sort((one, other) => compare(values.get(one), values.get(other), sign));
    body.classList.toggle("sorted", order !== "none");
    body.append(...sorted);
  }));
}
const told = new ResizeObserver((seen) => {
  for (const { target } of seen) target.classList.toggle("scrolls", target.scrollWidth > target.clientWidth + 1);
});
for (const part of document.querySelectorAll(".wide")) told.observe(part);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
